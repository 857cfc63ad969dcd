"""Start the jobs of migrations, and read and change the rows that say how they stand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote
from uuid import UUID

from api.jobs import started, submit
from api.launcher import Launcher
from api.mappings import require_mapping
from api.migration_schemas import RESERVED, MigrationBody, RetryBody, RollbackBody
from api.problems import CONFLICT, NOT_FOUND, ProblemError, invalid_field
from eventsourcing import EventStore, NotFoundError, Settings
from eventsourcing.bootstrap import System
from resources.connections import knows_target, source_url
from resources.migration_journal import (
    ALIVE,
    RESUMABLE,
    MigrationJournal,
    StateForbidsError,
    TargetHeldError,
)

OBEY_S = 3.0
"""How long a migration may take to stop of itself before its run is ended."""

_ENDED = (*RESUMABLE, "completed", "rolled_back")

Job = tuple[str, dict[str, Any]]
"""A job's name and its configuration."""


async def start_migration(
    system: System, jobs: Launcher, body: MigrationBody, token: UUID
) -> tuple[str, str]:
    """Write the row of a migration and start its job: its id and its run's, the same for the same token.

    Raises a 422 problem for a name that is not configured and for a malformed mapping, 409 while another
    migration holds the target or has the id, 503 when the job does not start; the row then says so.
    """
    asked_at = datetime.fromtimestamp((token.int >> 80) / 1000, UTC)
    migration_id = body.migration_id or f"migration-{asked_at:%Y%m%d-%H%M%S}-{token.hex[-6:]}"
    await system.store.initialize()
    journal = MigrationJournal(system.store.storage)
    run_id = await started(jobs, token)
    if run_id is None:
        await _require_connections(system.settings, source=body.source, target=body.target)
        await require_mapping(system.settings, body.mapping)
        if migration_id in RESERVED:
            raise invalid_field("migration_id", "is reserved")
        named = {"mapping": body.mapping, "source": body.source, "target": body.target}
        request: dict[str, Any] = {**named, "on_failure": body.options.on_failure}
        config: dict[str, Any] = {**request, "migration_id": migration_id}
        job: Job = ("migrate", config)
        if body.dry_run:
            job = ("plan_migration", {"ops": {"preview": {"config": config}}})
        request |= {"dry_run": body.dry_run, "token": token.hex}
        launching = _launching(token, job, {"status": "failed"})
        await _create(journal, migration_id, request, launching)
        run_id = await _launch(journal, jobs, migration_id, launching)
    await _settle(journal, jobs, migration_id, token, run_id)
    return migration_id, run_id


async def resume_migration(system: System, jobs: Launcher, migration_id: str, token: UUID) -> str:
    """Start the job that goes on with what was interrupted: the run, or its rollback.

    Raises a 404 problem, 409 unless it can be resumed.
    """

    async def what(row: dict[str, Any]) -> Job:
        if row["request"].get("dry_run"):
            raise ProblemError(CONFLICT, "A plan is not resumed; make another one.")
        asked = row.get("rollback_asked") if row.get("interrupted") == "rolling_back" else None
        if asked is not None:
            return ("rollback", _op("roll_back", asked))
        names = ("mapping", "source", "target", "on_failure")
        return (
            "migrate",
            {name: row["request"].get(name) for name in names} | {"migration_id": migration_id},
        )

    return await _act(system, jobs, migration_id, token, what, allowed=RESUMABLE)


async def cancel_migration(system: System, jobs: Launcher, migration_id: str, token: UUID) -> str | None:
    """Return once a migration has stopped: of itself, or because its run was ended.

    Raises a 404 problem, 409 when it is not running or has ended before it could be stopped.
    """
    await known_row(system.store, migration_id)
    journal = MigrationJournal(system.store.storage)
    try:
        asked = await journal.request_cancel(migration_id, token)
    except StateForbidsError as error:
        raise ProblemError(CONFLICT, f"The migration cannot be cancelled: {error}.") from None
    run_id: str | None = asked["dagster_run_id"]
    if asked["status"] == "cancelled":  # it had not begun
        if run_id is not None:
            await jobs.cancel(run_id)
        return run_id
    row = await finished_migration(system.store, migration_id, wait_s=OBEY_S)
    if row.get("dagster_run_id") != run_id:
        return run_id  # it has stopped, and was resumed since
    if row["status"] in ("completed", "failed"):
        raise ProblemError(CONFLICT, "The migration ended before it could be stopped.")
    if run_id is not None and row["status"] != "cancelled":
        await jobs.cancel(run_id)
        await jobs.wait(run_id, OBEY_S)
        await journal.update(migration_id, status="cancelled", ended_at=datetime.now(UTC))
    return run_id


async def verify_migration(system: System, jobs: Launcher, migration_id: str, token: UUID) -> str:
    """Start a verification. Raises a 404 problem, 409 while something else works on the migration."""
    job: Job = ("verify_migration", _op("verify_target", {"migration_id": migration_id}))
    changes = {"status": None, "verified": None}
    return await _act(system, jobs, migration_id, token, job, allowed=_ENDED, **changes)


async def retry_migration(
    system: System, jobs: Launcher, migration_id: str, body: RetryBody, token: UUID
) -> str:
    """Start the retry of a quarantine. Raises a 404 problem, 422 for an unknown or malformed mapping, 409
    unless the migration is completed."""

    async def what(_row: dict[str, Any]) -> Job:
        if body.mapping is not None:
            await require_mapping(system.settings, body.mapping)
        config = {"migration_id": migration_id, **body.model_dump(exclude_none=True)}
        return ("retry_quarantine", _op("retry_records", config))

    return await _act(system, jobs, migration_id, token, what, allowed=("completed",))


async def rollback_migration(
    system: System, jobs: Launcher, migration_id: str, body: RollbackBody, token: UUID
) -> str:
    """Start a rollback, or with `dry_run` say what it would do. Raises a 404 problem, 409 while something
    works on the migration or nothing was ever written."""
    asked = {"migration_id": migration_id, **body.model_dump(exclude_none=True)}
    job: Job = ("rollback", _op("roll_back", asked))
    changes = {"status": None} if body.dry_run else {"rollback_asked": asked}
    return await _act(system, jobs, migration_id, token, job, allowed=_ENDED, **changes)


async def finished_migration(store: EventStore, migration_id: str, *, wait_s: float) -> dict[str, Any]:
    """The row as soon as nothing works on the migration, or as it is after that time.

    Raises a 404 problem.
    """
    deadline, pause = time.monotonic() + wait_s, 0.05
    while True:
        row = await known_row(store, migration_id)
        left = deadline - time.monotonic()
        if row["status"] not in ALIVE or left <= 0:
            return row
        await asyncio.sleep(min(pause, left))
        pause = min(pause * 1.5, 0.5)


async def known_row(store: EventStore, migration_id: str) -> dict[str, Any]:
    """The row of a migration. Raises a 404 problem."""
    await store.initialize()
    row = await MigrationJournal(store.storage).get(migration_id)
    if row is None:
        raise ProblemError(NOT_FOUND, "Migration not found")
    return row


async def _act(
    system: System,
    jobs: Launcher,
    migration_id: str,
    token: UUID,
    job: Job | Callable[[dict[str, Any]], Awaitable[Job]],
    *,
    allowed: tuple[str, ...],
    status: str | None = "queued",
    **changes: Any,
) -> str:
    """Take a migration for a job and start that, once for each token: its run.

    A service may die at any point: what its token has taken is launched by the repeat, and what it has
    launched is found. A 503 gives back what was taken.
    """
    row = await known_row(system.store, migration_id)
    journal = MigrationJournal(system.store.storage)
    run_id = await started(jobs, token)
    if run_id is None:
        if not _is_taken(row, token):
            job = job if isinstance(job, tuple) else await job(row)
            before = {name: row.get(name) for name in ("status", "interrupted", "failure", "ended_at")}
            row["launching"] = changes["launching"] = _launching(token, job, before if status else None)
            if status is not None:
                changes["dagster_run_id"] = None  # the next one's is not known yet
            await _take(journal, migration_id, allowed=allowed, status=status, **changes)
        run_id = await _launch(journal, jobs, migration_id, row["launching"])
    await _settle(journal, jobs, migration_id, token, run_id)
    return run_id


def _is_taken(row: dict[str, Any], token: UUID) -> bool:
    """Whether the migration waits for the job of this request. Raises a 409 problem when it did, and was
    cancelled before that was started."""
    if (row.get("launching") or {}).get("token") != token.hex:
        return False
    if row["status"] == "cancelled":
        raise ProblemError(CONFLICT, "It was cancelled before its job was started.")
    return bool(row["status"] == "queued")


def _launching(token: UUID, job: Job, before: dict[str, Any] | None) -> dict[str, Any]:
    """What a row says of the job it was taken for, and how it stood before where it stands otherwise now."""
    return {"token": token.hex, "job": job[0], "config": job[1], "before": before}


async def _create(
    journal: MigrationJournal, migration_id: str, request: dict[str, Any], launching: dict[str, Any]
) -> None:
    """Write the row of a new migration, unless this request has; one whose job did not start is taken."""
    try:
        await journal.create(migration_id, request, launching=launching)
    except TargetHeldError as error:
        raise _held(error) from None
    except StateForbidsError as error:
        known = await journal.get(migration_id) or {"request": {}}
        if known["request"].get("token") != request["token"]:
            raise ProblemError(CONFLICT, f"A migration has this id already; {error}.") from None
        if not _is_taken(known, UUID(request["token"])):
            await _take(journal, migration_id, allowed=("failed",), status="queued", launching=launching)


async def _take(journal: MigrationJournal, migration_id: str, **how: Any) -> None:
    if (await journal.request(migration_id)).get("by") == "terminal":
        raise ProblemError(CONFLICT, "It was started from a terminal, over connections that have no name.")
    try:
        await journal.take(migration_id, **how)
    except StateForbidsError as error:
        raise ProblemError(CONFLICT, f"The state forbids it: {error}.") from None
    except TargetHeldError as error:
        raise _held(error) from None


def _held(error: TargetHeldError) -> ProblemError:
    status = error.status.replace("_", " ")
    detail = (
        f"Migration {error.holder} holds the target: it is {status} since {error.since}. "
        f"Wait for it, or cancel it: POST /migrations/{quote(error.holder, safe='')}/cancel."
    )
    members = {"migration_id": error.holder, "holder_status": error.status, "since": error.since}
    return ProblemError(CONFLICT, detail, members=members)


async def _launch(
    journal: MigrationJournal, jobs: Launcher, migration_id: str, launching: dict[str, Any]
) -> str:
    """Start the job that a migration was taken for. Raises a 503 problem; then the row is as before, and says
    why."""
    tags = {"migration_id": migration_id, "source": "rest"}
    try:
        return await submit(jobs, launching["job"], launching["config"], tags, UUID(launching["token"]))
    except ProblemError as problem:
        if launching["before"] is not None:
            before = {"ended_at": datetime.now(UTC), **launching["before"], "launching": None}
            await journal.update(migration_id, **before | {"failure": problem.detail})
        raise


async def _settle(
    journal: MigrationJournal, jobs: Launcher, migration_id: str, token: UUID, run_id: str
) -> None:
    """Have the row name the run of this request, if it waits for one. What was cancelled meanwhile is ended;
    a run that died with its service leaves the migration interrupted."""
    row = await journal.get(migration_id) or {}
    if (row.get("launching") or {}).get("token") != token.hex or row.get("dagster_run_id") is not None:
        return
    row = await journal.update(migration_id, dagster_run_id=run_id)
    if row["status"] == "cancelled":
        await jobs.cancel(run_id)
    elif await jobs.wait(run_id, 0) is False:
        await journal.interrupt(migration_id, run_id)


def _op(name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"ops": {name: {"config": config}}}


async def _require_connections(settings: Settings, *, source: str, target: str) -> None:
    """Raise a 422 problem for the first name that is not configured."""
    if not knows_target(settings, target):
        raise invalid_field("target", "is not the name of a configured target")
    try:
        await asyncio.to_thread(source_url, settings, source)
    except NotFoundError:
        raise invalid_field("source", "is not the name of a configured source") from None
