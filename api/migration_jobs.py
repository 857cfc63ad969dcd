"""Start the jobs of migrations, and read and change the rows that say how they stand."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote
from uuid import UUID

from api.jobs import submit
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


async def start_migration(
    system: System, jobs: Launcher, body: MigrationBody, token: UUID
) -> tuple[str, str]:
    """Write the row of a migration and start its job: its id and its run's, the same for the same token.

    Raises a 422 problem for a name that is not configured and for a malformed mapping, 409 while another
    migration holds the target or has the id, 503 when the job does not start; the row then says so.
    """
    await _require_connections(system.settings, source=body.source, target=body.target)
    await require_mapping(system.settings, body.mapping)
    asked_at = datetime.fromtimestamp((token.int >> 80) / 1000, UTC)
    migration_id = body.migration_id or f"migration-{asked_at:%Y%m%d-%H%M%S}-{token.hex[-6:]}"
    if migration_id in RESERVED:
        raise invalid_field("migration_id", "is reserved")
    request = {
        "mapping": body.mapping,
        "source": body.source,
        "target": body.target,
        "on_failure": body.options.on_failure,
    }
    await system.store.initialize()
    journal = MigrationJournal(system.store.storage)
    try:
        await journal.create(migration_id, {**request, "dry_run": body.dry_run, "token": token.hex})
    except StateForbidsError as error:
        row = await known_row(system.store, migration_id)
        if row["request"].get("token") != token.hex or row["status"] == "failed":
            raise ProblemError(CONFLICT, f"A migration has this id already; {error}.") from None
        if (run_id := row.get("dagster_run_id")) is not None:
            return migration_id, run_id  # asked for again, after the server died that was asked first
    except TargetHeldError as error:
        raise _held(error) from None
    config: dict[str, Any] = {**request, "migration_id": migration_id}
    job = "migrate"
    if body.dry_run:
        job, config = "plan_migration", {"ops": {"preview": {"config": config}}}
    return migration_id, await _launch(journal, jobs, migration_id, job, config)


async def resume_migration(store: EventStore, jobs: Launcher, migration_id: str) -> str:
    """Start the job that goes on with what was interrupted: the run, or its rollback.

    Raises a 404 problem, 409 unless it can be resumed.
    """
    row = await known_row(store, migration_id)
    journal = MigrationJournal(store.storage)
    if row["request"].get("dry_run"):
        raise ProblemError(CONFLICT, "A plan is not resumed; make another one.")
    asked = row.get("rollback_asked") if row.get("interrupted") == "rolling_back" else None
    taken = await _take(journal, migration_id, allowed=RESUMABLE, status="queued")
    if asked is not None:
        return await _launch(journal, jobs, migration_id, "rollback", _op("roll_back", asked))
    names = ("mapping", "source", "target", "on_failure")
    config = {name: taken["request"][name] for name in names} | {"migration_id": migration_id}
    return await _launch(journal, jobs, migration_id, "migrate", config)


async def cancel_migration(store: EventStore, jobs: Launcher, migration_id: str) -> str | None:
    """Return once a migration has stopped: of itself, or because its run was ended.

    Raises a 404 problem, 409 when it is not running or has ended before it could be stopped.
    """
    await known_row(store, migration_id)
    journal = MigrationJournal(store.storage)
    try:
        row = await journal.request_cancel(migration_id)
    except StateForbidsError as error:
        raise ProblemError(CONFLICT, f"The migration cannot be cancelled: {error}.") from None
    run_id: str | None = row.get("dagster_run_id")
    never_began = row["status"] == "cancelled"
    if not never_began:
        row = await finished_migration(store, migration_id, wait_s=OBEY_S)
    if row["status"] in ("completed", "failed"):
        raise ProblemError(CONFLICT, "The migration ended before it could be stopped.")
    if run_id is not None and (never_began or row["status"] != "cancelled"):
        await jobs.cancel(run_id)
    if run_id is not None and row["status"] != "cancelled":
        await jobs.wait(run_id, OBEY_S)
        await journal.update(migration_id, status="cancelled", ended_at=datetime.now(UTC))
    return run_id


async def verify_migration(store: EventStore, jobs: Launcher, migration_id: str) -> str:
    """Start a verification. Raises a 404 problem, 409 while something else works on the migration."""
    await known_row(store, migration_id)
    journal = MigrationJournal(store.storage)
    await _take(journal, migration_id, allowed=_ENDED)
    await journal.update(migration_id, verified=None)
    config = _op("verify_target", {"migration_id": migration_id})
    return await submit(jobs, "verify_migration", config, {"migration_id": migration_id})


async def retry_migration(system: System, jobs: Launcher, migration_id: str, body: RetryBody) -> str:
    """Start the retry of a quarantine. Raises a 404 problem, 422 for an unknown or malformed mapping, 409
    unless the migration is completed."""
    await known_row(system.store, migration_id)
    if body.mapping is not None:
        await require_mapping(system.settings, body.mapping)
    journal = MigrationJournal(system.store.storage)
    await _take(journal, migration_id, allowed=("completed",), status="queued")
    config = _op("retry_records", {"migration_id": migration_id, **body.model_dump(exclude_none=True)})
    return await _launch(journal, jobs, migration_id, "retry_quarantine", config)


async def rollback_migration(store: EventStore, jobs: Launcher, migration_id: str, body: RollbackBody) -> str:
    """Start a rollback, or with `dry_run` say what it would do. Raises a 404 problem, 409 while something
    works on the migration or nothing was ever written."""
    await known_row(store, migration_id)
    journal = MigrationJournal(store.storage)
    asked = {"migration_id": migration_id, **body.model_dump(exclude_none=True)}
    if body.dry_run:
        await _take(journal, migration_id, allowed=_ENDED)
        tags = {"migration_id": migration_id}
        return await submit(jobs, "rollback", _op("roll_back", asked), tags)
    await _take(journal, migration_id, allowed=_ENDED, status="queued")
    await journal.update(migration_id, rollback_asked=asked)
    return await _launch(journal, jobs, migration_id, "rollback", _op("roll_back", asked))


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


async def _take(
    journal: MigrationJournal, migration_id: str, *, allowed: tuple[str, ...], status: str | None = None
) -> dict[str, Any]:
    if (await journal.request(migration_id)).get("by") == "terminal":
        raise ProblemError(CONFLICT, "It was started from a terminal, over connections that have no name.")
    try:
        return await journal.take(migration_id, allowed=allowed, status=status)
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
    journal: MigrationJournal, jobs: Launcher, migration_id: str, job: str, config: dict[str, Any]
) -> str:
    try:
        run_id = await submit(jobs, job, config, {"migration_id": migration_id, "source": "rest"})
    except ProblemError as problem:
        await journal.update(
            migration_id, status="failed", failure=problem.detail, ended_at=datetime.now(UTC)
        )
        raise
    await journal.update(migration_id, dagster_run_id=run_id)
    return run_id


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
