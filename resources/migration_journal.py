"""The journal of migrations: a durable row for each, kept by whoever runs it, read by whoever asks.

States: queued → running → completed, failed or cancelled; rolling_back → rolled_back. A row that is
running or rolling back and whose heartbeat is older than 15 s, or whose process of this host is gone,
reads as interrupted. A target is held by one row that is under way; the engine's own lease in the target
has the last word.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psutil

from eventsourcing import acts
from eventsourcing.canonical import decode, encode
from eventsourcing.errors import NotFoundError
from eventsourcing.storage.base import StateStorage, StateTable, StateTransaction

MIGRATIONS = StateTable("migrations")
"""Key: migration_id. Value: the row."""

ORDER = StateTable("migrations-by-age")
"""Key: moment of creation and migration_id, so that keys sort by age. Value: the migration_id."""

HOLDERS = StateTable("migration-targets")
"""Key: a target's name. Value: the migration that holds it, or held it last."""

REPORTS = StateTable("migration-reports")
"""Key: migration_id. Value: {facts, html} of its newest report."""

BEAT_S = 1.0
STALE_AFTER = timedelta(seconds=15)
ALIVE = ("queued", "running", "rolling_back")
RESUMABLE = ("interrupted", "failed", "cancelled")
STEPS = ("start", "check_schema", "extract", "transform", "validate", "load", "verify", "complete")
"""The steps of a run, in order."""

_ENDS = (5, 10, 25, 40, 50, 85, 95, 100)
"""The percentage at which each step ends."""


class TargetHeldError(Exception):
    """Another migration that is under way holds the target. Nothing was changed.

    `holder` is its id, `status` and `since` how it stands, `where` its process and host, empty while none
    works on it yet.
    """

    def __init__(self, row: dict[str, Any]) -> None:
        self.holder: str = row["migration_id"]
        self.status, self.since, self.where = str(row["status"]), _since(row), _where(row)
        super().__init__(
            f"migration {self.holder!r} holds the target: {told_state(row)}; wait for it, or cancel it"
        )


class StateForbidsError(Exception):
    """The migration is in a state that forbids what was asked. Nothing was changed."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.status = str(row["status"])
        super().__init__(f"migration {row['migration_id']!r} is {told_state(row)}")


class MigrationJournal:
    """The rows of all migrations."""

    def __init__(self, storage: StateStorage) -> None:
        self._storage = storage

    async def create(
        self, migration_id: str, request: Mapping[str, Any], *, status: str = "queued", **fields: Any
    ) -> None:
        """Write the row of a new migration with these fields, which then holds its target unless it is a dry
        run.

        Raises StateForbidsError when the id is taken, TargetHeldError when another one is under way.
        """
        now = datetime.now(UTC)
        row = {
            "migration_id": migration_id,
            "status": status,
            "request": dict(request),
            "created_at": now,
            "heartbeat_at": now,
            "current_step": None,
            "steps_completed": 0,
            "total_steps": len(STEPS),
            "progress": 0,
            **fields,
        }
        async with self._storage.transaction() as transaction:
            if not request.get("dry_run"):
                await _hold(transaction, str(request["target"]), migration_id)
            if not await transaction.add(MIGRATIONS, migration_id, _plain(row)):
                known = await _locked(transaction, migration_id)
                raise StateForbidsError(as_seen(known))
            await transaction.put(ORDER, f"{now:%Y%m%dT%H%M%S%f}-{migration_id}", migration_id)

    async def get(self, migration_id: str) -> dict[str, Any] | None:
        """The row, or None."""
        async with self._storage.transaction() as transaction:
            row = await transaction.get(MIGRATIONS, migration_id)
        return None if row is None else as_seen(row)

    async def request(self, migration_id: str) -> dict[str, Any]:
        """What a migration was asked to be. Raises NotFoundError."""
        row = await self.get(migration_id)
        if row is None:
            raise NotFoundError("migration", migration_id)
        return dict(row["request"])

    async def page(
        self, *, before: str | None = None, limit: int = 100
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """The next rows, newest first, and the key of each, behind which a next page begins."""
        async with self._storage.transaction() as transaction:
            keys = await transaction.scan(ORDER, after=before, limit=limit, backwards=True)
            rows = await transaction.get_many(MIGRATIONS, [migration_id for _, migration_id in keys])
        return [as_seen(rows[name]) for _, name in keys if name in rows], [key for key, _ in keys]

    async def update(self, migration_id: str, **fields: Any) -> dict[str, Any]:
        """Change fields of a row; return it. Raises NotFoundError."""
        async with self._storage.transaction() as transaction:
            row = await _locked(transaction, migration_id)
            row = _plain({**row, **fields})
            await transaction.put(MIGRATIONS, migration_id, row)
        return as_seen(row)

    async def beat(self, migration_id: str, **fields: Any) -> bool:
        """Say that it is alive and how far; whether somebody asked it to stop."""
        row = await self.update(migration_id, heartbeat_at=datetime.now(UTC), **fields)
        return bool(row.get("cancel_requested"))

    async def take(
        self,
        migration_id: str,
        *,
        allowed: tuple[str, ...],
        status: str | None = None,
        request: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
        """Let the next job have the migration: from one of these states into the one given, if any, and
        change these fields.

        Raises NotFoundError, StateForbidsError, TargetHeldError.
        """
        async with self._storage.transaction() as transaction:
            row = await _locked(transaction, migration_id)
            seen = as_seen(row)["status"]
            if seen not in allowed:
                raise StateForbidsError(as_seen(row))
            asked = {**row["request"], **(request or {})}
            if seen not in ALIVE:
                row["status_before"] = seen
            if status is not None:
                if not asked.get("dry_run"):
                    await _hold(transaction, str(asked["target"]), migration_id)
                row.update(status=status, failure=None, ended_at=None)
            now = datetime.now(UTC)
            row.update(request=asked, cancel_requested=False, heartbeat_at=now, taken_at=now, process=None)
            row = _plain({**row, **fields})
            await transaction.put(MIGRATIONS, migration_id, row)
        return as_seen(row)

    async def request_cancel(self, migration_id: str, token: UUID | None = None) -> dict[str, Any]:
        """Ask a migration to stop, at once when it has not begun; its {status, dagster_run_id} then.

        A token names the request, which asks once. Raises NotFoundError, StateForbidsError.
        """
        async with self._storage.transaction() as transaction:
            if (known := await acts.recall(transaction, token)) is not None:
                return known
            row = await _locked(transaction, migration_id)
            seen = as_seen(row)["status"]
            if seen not in ("queued", "running"):
                raise StateForbidsError(as_seen(row))
            row["cancel_requested"] = True
            if seen == "queued":
                row.update(status="cancelled", ended_at=datetime.now(UTC))
            await transaction.put(MIGRATIONS, migration_id, _plain(row))
            asked = {"status": row["status"], "dagster_run_id": row.get("dagster_run_id")}
            await acts.remember(transaction, token, asked)
        return asked

    async def interrupt(self, migration_id: str, run_id: str) -> bool:
        """Say that the run which worked on a migration died; False when it had ended in order, or is
        another one than the row names."""
        async with self._storage.transaction() as transaction:
            row = await transaction.get(MIGRATIONS, migration_id, lock=True)
            if row is None or row.get("dagster_run_id") != run_id or row["status"] not in ALIVE:
                return False
            why = {"interrupted": row["status"], "failure": "its process died"}
            row = _plain({**row, **why, "status": "interrupted", "ended_at": datetime.now(UTC)})
            await transaction.put(MIGRATIONS, migration_id, row)
        return True

    async def keep_report(self, migration_id: str, facts: dict[str, Any], html: str) -> None:
        """Keep the newest report of a migration."""
        async with self._storage.transaction() as transaction:
            await transaction.put(REPORTS, migration_id, {"facts": facts, "html": html})

    async def report(self, migration_id: str) -> dict[str, Any] | None:
        """{facts, html} of the newest report, or None."""
        async with self._storage.transaction() as transaction:
            found: dict[str, Any] | None = await transaction.get(REPORTS, migration_id)
            return found


def as_seen(row: dict[str, Any]) -> dict[str, Any]:
    """The row as a reader sees it: one whose process died is interrupted."""
    beat = datetime.fromisoformat(row["heartbeat_at"])
    is_stale = datetime.now(UTC) - beat > STALE_AFTER or is_gone(row.get("process"))
    if row["status"] in ("running", "rolling_back") and is_stale:
        return {**row, "status": "interrupted", "interrupted": row["status"]}
    return row


def after_rollback(facts: Mapping[str, Any]) -> str:
    """The state of a migration after a rollback: one that left nothing behind goes on from its stage."""
    return "cancelled" if facts["to_stage"] is not None and not facts["residual_diff"] else "rolled_back"


def told_state(row: dict[str, Any]) -> str:
    """How a migration stands: what it does, since when, and which process does it."""
    status = str(row["status"]).replace("_", " ")
    if row["status"] not in ALIVE:
        return status
    return " ".join(filter(None, [f"{status} since {_since(row)}", _where(row)]))


def _since(row: dict[str, Any]) -> str:
    return f"{datetime.fromisoformat(row.get('taken_at') or row['created_at']):%Y-%m-%d %H:%M:%S} UTC"


def _where(row: dict[str, Any]) -> str:
    process = row.get("process")
    return f"in process {process['pid']} on {process['host']}" if process else ""


def this_process() -> dict[str, Any]:
    """What says which process works on a migration."""
    process = psutil.Process()
    return {"host": socket.gethostname(), "pid": process.pid, "created": process.create_time()}


def is_gone(process: dict[str, Any] | None) -> bool:
    """Whether a process, see `this_process`, of this host is gone; nobody knows of those of another host."""
    if process is None or process["host"] != socket.gethostname():
        return False
    try:
        found = psutil.Process(process["pid"])
        return bool(found.create_time() != process["created"] or found.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def percentage(step: str, done: int, total: int) -> float:
    """How far a run is, 0 to 100, while a step has done so many of its records."""
    place = STEPS.index(step)
    begins = _ENDS[place - 1] if place else 0
    return round(begins + (_ENDS[place] - begins) * min(done / total if total else 0.0, 1.0), 1)


async def _locked(transaction: StateTransaction, migration_id: str) -> dict[str, Any]:
    row: dict[str, Any] | None = await transaction.get(MIGRATIONS, migration_id, lock=True)
    if row is None:
        raise NotFoundError("migration", migration_id)
    return row


async def _hold(transaction: StateTransaction, target: str, migration_id: str) -> None:
    await transaction.add(HOLDERS, target, migration_id)
    holder = await transaction.get(HOLDERS, target, lock=True)
    if holder not in (None, migration_id):
        row = await transaction.get(MIGRATIONS, holder)
        if row is not None and as_seen(row)["status"] in ALIVE:
            raise TargetHeldError(as_seen(row))
    await transaction.put(HOLDERS, target, migration_id)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = decode(encode(row))
    return plain
