"""Replays with a name: each has a durable row with its request, state, progress and result.

States: pending → running → completed, failed or cancelled. A running row whose heartbeat is older than
15 s reads as interrupted: its process died.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from pydantic import ConfigDict, model_validator

from eventsourcing.canonical import decode, encode
from eventsourcing.config import EventReplayConfig
from eventsourcing.errors import NotFoundError
from eventsourcing.events import EventTypeName, Identifier, UtcDatetime
from eventsourcing.plugins import replay_handlers
from eventsourcing.query import EventQuery
from eventsourcing.replay import EventReplay, ReplayResult
from eventsourcing.storage.base import StateTable, Storage
from eventsourcing.store import EventStore

REPLAYS = StateTable("replays")
"""Key: second of the start and count within it, so that keys sort by age. Value: the row."""

REPLAYS_BY_TOKEN = StateTable("replays-by-token")
"""The replay that a request made, for a day: {replay_id} by the request's token."""

_TOKEN_KEPT_S = 86_400.0
SHOWN_ERRORS = 100
BEAT_S = 3.0
STALE_AFTER = timedelta(seconds=15)
UNFINISHED = ("pending", "running")

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

    @model_validator(mode="after")
    def _own_filter_given(self) -> ReplayRequest:
        needed = _NEEDED.get(self.replay_type)
        if needed is not None and not getattr(self, needed):
            raise ValueError(f"{needed} is required for replay_type {self.replay_type!r}")
        return self

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
        self._storage = storage

    async def create(self, request: ReplayRequest, token: UUID | None = None) -> str:
        """Write a pending row; return its id `replay_%Y%m%d_%H%M%S_{n}`, unique across processes.

        A token names the request: for a day, the same one gets the row that it made.
        """
        known = None if token is None else await self._made_by(token)
        if known is not None:
            return known
        second = datetime.now(UTC).strftime("%Y%m%d_%H%M%S")
        count = 0
        while True:
            replay_id = f"replay_{second}_{count}"
            row = {
                "replay_id": replay_id,
                "status": "pending",
                "replay_type": request.replay_type,
                "request": request.model_dump(mode="json"),
                **_progress(ReplayResult()),
                "start_time": datetime.now(UTC),
            }
            async with self._storage.transaction() as transaction:
                if await transaction.add(REPLAYS, _key(replay_id), row):
                    if token is not None:
                        await transaction.put(REPLAYS_BY_TOKEN, token.hex, {"replay_id": replay_id})
                        await transaction.purge(REPLAYS_BY_TOKEN, older_than_s=_TOKEN_KEPT_S, limit=100)
                    return replay_id
            count += 1

    async def _made_by(self, token: UUID) -> str | None:
        async with self._storage.transaction() as transaction:
            made: dict[str, str] | None = await transaction.get(REPLAYS_BY_TOKEN, token.hex)
        return None if made is None else made["replay_id"]

    async def get(self, replay_id: str) -> dict[str, Any] | None:
        """The row, or None."""
        async with self._storage.transaction() as transaction:
            row = await transaction.get(REPLAYS, _key(replay_id))
        return None if row is None else _as_seen(row)

    async def page(self, *, before: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """The next rows older than the replay `before`, newest first."""
        after = _key(before) if before is not None else None
        async with self._storage.transaction() as transaction:
            rows = await transaction.scan(REPLAYS, after=after, limit=limit, backwards=True)
        return [_as_seen(row) for _, row in rows]

    async def update(self, replay_id: str, **fields: Any) -> dict[str, Any]:
        """Change fields of a row; return it. Raises NotFoundError."""
        async with self._storage.transaction() as transaction:
            row = await transaction.get(REPLAYS, _key(replay_id), lock=True)
            if row is None:
                raise NotFoundError("replay", replay_id)
            row = decode(encode({**row, **fields}))
            await transaction.put(REPLAYS, _key(replay_id), row)
        return _as_seen(row)

    async def request_cancel(self, replay_id: str) -> bool:
        """Ask a replay to stop, at once when it has not begun; False when it is not running."""
        async with self._storage.transaction() as transaction:
            row = await transaction.get(REPLAYS, _key(replay_id), lock=True)
            if row is None or _as_seen(row)["status"] not in UNFINISHED:
                return False
            row["cancel_requested"] = True
            if row["status"] == "pending":
                row.update(status="cancelled", end_time=datetime.now(UTC))
            await transaction.put(REPLAYS, _key(replay_id), row)
        return True


async def run_replay(
    store: EventStore,
    replay_id: str,
    *,
    should_stop: Callable[[], Awaitable[bool]] | None = None,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Run the replay of a row into states of its own; keep the row up to date; return it at its end.

    Raises NotFoundError for no such row. A replay that is not pending is returned as it is.
    """
    journal = ReplayJournal(store.storage)
    row = await journal.get(replay_id)
    if row is None:
        raise NotFoundError("replay", replay_id)
    if row["status"] != "pending":
        return row
    request = ReplayRequest.model_validate(row["request"])
    replay = EventReplay(store, request)
    if not request.dry_run:
        for handler in replay_handlers(request.handlers):
            replay.add_handler(handler.fresh(), force=request.handlers is not None)
    await journal.update(replay_id, status="running", heartbeat_at=datetime.now(UTC))

    async def report(result: ReplayResult) -> bool:
        now = await journal.update(replay_id, heartbeat_at=datetime.now(UTC), **_progress(result))
        if on_progress is not None:
            on_progress(now)
        return not now.get("cancel_requested") and not (should_stop is not None and await should_stop())

    try:
        async with _beating(journal, replay_id):
            result = await replay.replay(request.query(), report=report)
    except BaseException as error:
        status = "failed" if isinstance(error, Exception) else "interrupted"
        await journal.update(replay_id, status=status, failure=str(error), end_time=datetime.now(UTC))
        raise
    status = "completed"
    if result.stopped:
        status = "failed" if result.failed_events and request.stop_on_error else "cancelled"
    return await journal.update(replay_id, status=status, **_progress(result))


@asynccontextmanager
async def _beating(journal: ReplayJournal, replay_id: str) -> AsyncIterator[None]:
    """Keep the row's heartbeat going, however long a batch or the pause after it takes."""

    async def beat() -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            await journal.update(replay_id, heartbeat_at=datetime.now(UTC))

    beating = asyncio.create_task(beat(), name=f"heartbeat of {replay_id}")
    try:
        yield
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)


def _progress(result: ReplayResult) -> dict[str, Any]:
    rate = result.total_events / result.duration if result.duration > 0 else 0.0
    left = 100.0 - result.progress
    eta = result.duration * left / result.progress if result.progress and result.end_time is None else None
    return {
        **result.to_dict(),
        "errors": result.errors[:SHOWN_ERRORS],
        "error_count": len(result.errors),
        "progress": result.progress,
        "rate": rate,
        "eta": eta,
    }


def _as_seen(row: dict[str, Any]) -> dict[str, Any]:
    """The row, interrupted when its process stopped beating."""
    beat = row.get("heartbeat_at")
    running = row["status"] == "running" and beat is not None
    if running and datetime.now(UTC) - datetime.fromisoformat(str(beat)) > STALE_AFTER:
        return {**row, "status": "interrupted"}
    return row


def _key(replay_id: str) -> str:
    """Sort by second, then by the count as a number."""
    head, _, count = replay_id.rpartition("_")
    return f"{head}_{count:0>10}"
