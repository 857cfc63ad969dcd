"""Replays with a name: each has a durable row with its request, state, progress and result.

States: pending → running → completed, failed or cancelled. A running row whose heartbeat is older than
15 s reads as interrupted: its process died. What was interrupted, failed or cancelled can be resumed: the
row is pending again, with what was done, and goes on behind its position. A row has one owner at a time:
a process that was taken for dead cannot write into it any more.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from pydantic import ConfigDict, model_validator

from eventsourcing import acts
from eventsourcing.canonical import decode, encode
from eventsourcing.config import EventReplayConfig
from eventsourcing.errors import BusyError, NotFoundError, StateForbidsError
from eventsourcing.events import EventTypeName, Identifier, UtcDatetime
from eventsourcing.heartbeats import is_stale
from eventsourcing.query import EventQuery
from eventsourcing.replay import ReplayResult
from eventsourcing.storage.base import StateTable, StateTransaction, Storage

REPLAYS = StateTable("replays")
"""Key: second of the start and count within it, so that keys sort by age. Value: the row."""

SHOWN_ERRORS = 100
UNFINISHED = ("pending", "running")
RESUMABLE = ("interrupted", "failed", "cancelled")

KEPT = timedelta(days=7)
"""How long a replay that ended early can be resumed."""

_NEEDED = {"aggregate": "aggregate_id", "type": "event_types", "correlation": "correlation_id"}


class ReplayRequest(EventReplayConfig):
    """What to replay, through which handlers, and how."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    replay_type: Literal["all", "aggregate", "type", "correlation"]
    aggregate_id: Identifier | None = None
    from_version: int | None = None
    to_version: int | None = None
    event_types: list[EventTypeName] | None = None
    correlation_id: UUID | None = None
    from_timestamp: UtcDatetime | None = None
    to_timestamp: UtcDatetime | None = None
    handlers: list[str] | None = None
    """Names of handlers; without it every replayable one."""
    dry_run: bool = False
    """Read and count, call no handler."""
    from_snapshot: bool = False
    """Of an aggregate: begin behind its newest snapshot, if every handler can take its state over."""

    @model_validator(mode="after")
    def _own_filter_given(self) -> ReplayRequest:
        needed = _NEEDED.get(self.replay_type)
        if needed is not None and not getattr(self, needed):
            raise ValueError(f"{needed} is required for replay_type {self.replay_type!r}")
        if self.from_snapshot and self.replay_type != "aggregate":
            raise ValueError("from_snapshot is for replay_type 'aggregate'")
        return self

    @property
    def is_unfiltered(self) -> bool:
        """Whether it selects everything, so that its states can be held against the live ones."""
        return self.replay_type == "all" and self.from_timestamp is None and self.to_timestamp is None

    def query(self) -> EventQuery:
        """The events that the request selects."""
        window = EventQuery(from_timestamp=self.from_timestamp, to_timestamp=self.to_timestamp)
        match self.replay_type:
            case "aggregate":
                return window.where(
                    aggregate_id=self.aggregate_id, from_version=self.from_version, to_version=self.to_version
                )
            case "type":
                return window.where(event_types=tuple(self.event_types or ()))
            case "correlation":
                return window.where(correlation_id=self.correlation_id)
            case _:
                return window


class ReplayJournal:
    """The rows of all replays."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    async def create(self, request: ReplayRequest, token: UUID | None = None) -> str:
        """Write a pending row; return its id `replay_%Y%m%d_%H%M%S_{n}`, unique across processes.

        A token names the request: for a day, the same one gets the row that it made.
        """
        async with self.storage.transaction() as transaction:
            known = await acts.recall(transaction, token)
        if known is not None:
            return str(known["replay_id"])
        second = datetime.now(UTC).strftime("%Y%m%d_%H%M%S")
        count = 0
        while True:
            replay_id = f"replay_{second}_{count}"
            row = {
                "replay_id": replay_id,
                "status": "pending",
                "replay_type": request.replay_type,
                "request": request.model_dump(mode="json"),
                **progress_fields(ReplayResult()),
                "start_time": datetime.now(UTC),
            }
            async with self.storage.transaction() as transaction:
                if await transaction.add(REPLAYS, _key(replay_id), row):
                    await acts.remember(transaction, token, {"replay_id": replay_id})
                    return replay_id
            count += 1

    async def get(self, replay_id: str) -> dict[str, Any] | None:
        """The row, or None."""
        async with self.storage.transaction() as transaction:
            row = await transaction.get(REPLAYS, _key(replay_id))
        return None if row is None else _as_seen(row)

    async def page(self, *, before: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """The next rows older than the replay `before`, newest first."""
        after = _key(before) if before is not None else None
        async with self.storage.transaction() as transaction:
            rows = await transaction.scan(REPLAYS, after=after, limit=limit, backwards=True)
        return [_as_seen(row) for _, row in rows]

    async def update(self, replay_id: str, **fields: Any) -> dict[str, Any]:
        """Change fields of a row; return it. Raises NotFoundError."""
        async with self.storage.transaction() as transaction:
            row = _plain({**await self._locked(transaction, replay_id), **fields})
            await transaction.put(REPLAYS, _key(replay_id), row)
        return _as_seen(row)

    async def request_cancel(self, replay_id: str) -> bool:
        """Ask a replay to stop, at once when it has not begun; False when it is not running."""
        async with self.storage.transaction() as transaction:
            row = await transaction.get(REPLAYS, _key(replay_id), lock=True)
            if row is None or _as_seen(row)["status"] not in UNFINISHED:
                return False
            row["cancel_requested"] = True
            if row["status"] == "pending":
                row.update(status="cancelled", end_time=datetime.now(UTC))
            await transaction.put(REPLAYS, _key(replay_id), row)
        return True

    async def resume(self, replay_id: str, token: UUID | None = None) -> dict[str, Any]:
        """Make a replay that ended early pending again, to be run on from where it is; return the row.

        A token names the request: `resumed_by` then says that it was this one. Raises NotFoundError, and
        StateForbidsError unless it is interrupted, failed or cancelled, since seven days at most; then
        nothing has changed.
        """
        async with self.storage.transaction() as transaction:
            row = await self._locked(transaction, replay_id)
            status = _as_seen(row)["status"]
            if status not in RESUMABLE or row.get("forgotten"):
                told = f"{status}, and its states are forgotten" if row.get("forgotten") else status
                raise StateForbidsError("replay", replay_id, told)
            row.update(status="pending", owner=None, cancel_requested=False, failure=None, end_time=None)
            row["resumed"] = row.get("resumed", 0) + 1
            if token is not None:
                row.update(dagster_run_id=None, resumed_by=token.hex)
            await transaction.put(REPLAYS, _key(replay_id), row)
        return row

    async def give_up(self, replay_id: str) -> bool:
        """Say that a replay which ended `KEPT` ago is not resumed any more; True when its states may go."""
        async with self.storage.transaction() as transaction:
            row = await transaction.get(REPLAYS, _key(replay_id), lock=True)
            if row is None or row["status"] == "completed":
                return True
            if _as_seen(row)["status"] not in RESUMABLE or not is_stale(row.get("heartbeat_at"), KEPT):
                return False
            await transaction.put(REPLAYS, _key(replay_id), {**row, "forgotten": True})
        return True

    async def take(self, replay_id: str, owner: str) -> dict[str, Any] | None:
        """Begin the work on a pending replay, from now on ours; None when it is not pending.

        Raises NotFoundError.
        """
        async with self.storage.transaction() as transaction:
            row = await self._locked(transaction, replay_id)
            if row["status"] != "pending":
                return None
            row.update(status="running", owner=owner, heartbeat_at=datetime.now(UTC))
            taken = _plain(row)
            await transaction.put(REPLAYS, _key(replay_id), taken)
        return taken

    async def write(
        self, transaction: StateTransaction, replay_id: str, owner: str, **fields: Any
    ) -> dict[str, Any]:
        """Change fields of our row in a transaction of ours. Raises BusyError when it has another owner."""
        row = await self._locked(transaction, replay_id)
        if row.get("owner") != owner or row["status"] != "running":
            raise BusyError(f"replay {replay_id!r} was taken over by another process, or ended")
        changed = _plain({**row, **fields, "heartbeat_at": datetime.now(UTC)})
        await transaction.put(REPLAYS, _key(replay_id), changed)
        return changed

    async def _locked(self, transaction: StateTransaction, replay_id: str) -> dict[str, Any]:
        row: dict[str, Any] | None = await transaction.get(REPLAYS, _key(replay_id), lock=True)
        if row is None:
            raise NotFoundError("replay", replay_id)
        return row


def progress_fields(result: ReplayResult) -> dict[str, Any]:
    """What the row says of a result: rate in events a second of work, eta in seconds."""
    rate = result.total_events / result.worked_s if result.worked_s > 0 else 0.0
    left = 100.0 - result.progress
    under_way = result.progress and result.end_time is None
    return {
        **result.to_dict(),
        "errors": result.errors[:SHOWN_ERRORS],
        "error_count": result.error_count,
        "progress": result.progress,
        "horizon": result.horizon,
        "worked_s": result.worked_s,
        "stopping_errors": result.stopping_errors,
        "rate": rate,
        "eta": result.worked_s * left / result.progress if under_way else None,
    }


def result_of(row: dict[str, Any]) -> ReplayResult | None:
    """The result so far of a row that was begun before, to be carried on; None of one that was not.

    The event that ended it is no longer counted: it is the next one.
    """
    if not row.get("horizon"):
        return None
    ended_by = row["stopping_errors"]
    return ReplayResult(
        start_time=datetime.fromisoformat(row["start_time"]),
        total_events=row["total_events"] - bool(ended_by),
        processed_events=row["processed_events"],
        failed_events=row["failed_events"] - bool(ended_by),
        errors=[error for error in row["errors"] if error not in ended_by],
        error_count=row["error_count"] - len(ended_by),
        position=row["position"],
        horizon=row["horizon"],
        worked_s=row["worked_s"],
        from_snapshot=row["from_snapshot"],
    )


def _as_seen(row: dict[str, Any]) -> dict[str, Any]:
    """The row, interrupted when its process stopped beating."""
    if row["status"] == "running" and is_stale(row.get("heartbeat_at")):
        return {**row, "status": "interrupted"}
    return row


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """The row as it reads once it is stored."""
    plain: dict[str, Any] = decode(encode(row))
    return plain


def _key(replay_id: str) -> str:
    """Sort by second, then by the count as a number."""
    head, _, count = replay_id.rpartition("_")
    return f"{head}_{count:0>10}"
