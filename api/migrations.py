"""The routes of migrations: start, follow, stop and undo them, as jobs over names that are configured."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Query, Request
from fastapi.responses import HTMLResponse, Response

from api.access import CurrentCaller, Scope, needs
from api.dependencies import Jobs, OpenStore, OpenSystem, accepted, json_response, reach
from api.idempotency import DoneOnce
from api.migration_jobs import (
    cancel_migration,
    finished_migration,
    known_row,
    resume_migration,
    retry_migration,
    rollback_migration,
    start_migration,
    verify_migration,
)
from api.migration_schemas import (
    MigrationBody,
    MigrationPage,
    QuarantinePageParams,
    RetryBody,
    RollbackBody,
)
from api.paging import cursor_after, key_before, next_link, position_before
from api.problems import NOT_FOUND, ProblemError
from api.requests import HtmlRoute, JsonRoute
from api.schemas import PathId, ReadParams, WaitParams, problems
from eventsourcing import NotFoundError
from eventsourcing.canonical import encode
from eventsourcing.personal import MIGRATION, QUARANTINE, without
from eventsourcing.quarantine import quarantined
from resources.migration_journal import MigrationJournal

READ = problems(404, 406, 422, 503)
JOB: dict[str, Any] = {
    "status_code": 202,
    "response_model": None,
    "responses": problems(400, 404, 406, 409, 413, 415, 422, 503),
    "openapi_extra": needs(Scope.MIGRATE),
}
"""What the calls have in common that start or stop a job."""


class Act:
    """What a keyed request does once: start or stop a job of the migration in the path, and tell of it."""

    def __init__(self, system: OpenSystem, jobs: Jobs, migration_id: PathId, once: DoneOnce) -> None:
        self._system, self._jobs, self._migration_id, self._once = system, jobs, migration_id, once

    async def __call__(
        self, act: Callable[..., Awaitable[str | None]], what: str, *asked: object
    ) -> Response:
        """Do it, with what the body asks for; `what` says what becomes of the migration."""

        async def work(token: UUID) -> Response:
            run_id = await act(self._system, self._jobs, self._migration_id, *asked, token)
            return _started(self._migration_id, run_id, what)

        return await self._once(work)


async def _act(system: OpenSystem, jobs: Jobs, migration_id: PathId, once: DoneOnce) -> Act:
    return Act(system, jobs, migration_id, once)


Acting = Annotated[Act, Depends(_act)]

migrations = APIRouter(route_class=JsonRoute, tags=["migrations"])
pages = APIRouter(route_class=HtmlRoute, tags=["migrations"])


@migrations.post("/migrations", **JOB)
async def create_migration(system: OpenSystem, jobs: Jobs, body: MigrationBody, once: DoneOnce) -> Response:
    """Start a migration, or plan one with `dry_run`. Mapping, source and target are configured names."""

    async def start(token: UUID) -> Response:
        migration_id, run_id = await start_migration(system, jobs, body, token)
        return _started(migration_id, run_id, "planned" if body.dry_run else "started")

    return await once(start)


@migrations.get(
    "/migrations", response_model=None, responses=problems(406, 422, 503), openapi_extra=needs(Scope.READ)
)
async def list_migrations(
    request: Request, store: OpenStore, params: Annotated[MigrationPage, Query()]
) -> Response:
    """All migrations, newest first, in pages."""
    await reach(store, params.min_position)
    journal, before = MigrationJournal(store.storage), key_before(params)
    rows, keys = await journal.page(before=before, limit=params.limit + 1)
    more = len(keys) > params.limit
    cursor = cursor_after(keys[params.limit - 1], params) if more else None
    content = {"migrations": [_only(row, LISTED) for row in rows[: params.limit]]}
    return json_response(encode(content), headers=next_link(request, cursor))


@migrations.get(
    "/migrations/{migration_id}", response_model=None, responses=READ, openapi_extra=needs(Scope.READ)
)
async def get_migration(
    store: OpenStore,
    caller: CurrentCaller,
    migration_id: PathId,
    params: Annotated[WaitParams, Query()],
) -> Response:
    """One migration; `wait` holds the answer back until nothing works on it, for so many seconds at most."""
    await reach(store, params.min_position)
    row = await finished_migration(store, migration_id, wait_s=params.wait)
    facts = shown(row)
    return json_response(encode(facts if caller.sees_personal_data else without(facts, MIGRATION)))


@migrations.post("/migrations/{migration_id}/resume", name="resume_migration", **JOB)
async def resume(act: Acting) -> Response:
    """Go on with a migration that was interrupted, cancelled or failed."""
    return await act(resume_migration, "resumed")


@migrations.post("/migrations/{migration_id}/cancel", name="cancel_migration", **JOB)
async def cancel(act: Acting) -> Response:
    """Stop a migration; what is done stays done, and it can be resumed."""
    return await act(cancel_migration, "cancelled")


@migrations.post("/migrations/{migration_id}/verify", name="verify_migration", **JOB)
async def verify(act: Acting) -> Response:
    """Compare the target with what was migrated, now."""
    return await act(verify_migration, "being verified")


@migrations.post("/migrations/{migration_id}/rollback", name="rollback_migration", **JOB)
async def rollback(act: Acting, body: Annotated[RollbackBody | None, Body()] = None) -> Response:
    """Undo a migration row by row; rows that others changed since stay as they are and are reported."""
    asked = body or RollbackBody()
    return await act(rollback_migration, "being previewed" if asked.dry_run else "being rolled back", asked)


@migrations.get(
    "/migrations/{migration_id}/quarantine",
    response_model=None,
    responses=READ,
    openapi_extra=needs(Scope.READ),
)
async def list_quarantine(
    request: Request,
    store: OpenStore,
    caller: CurrentCaller,
    migration_id: PathId,
    params: Annotated[QuarantinePageParams, Query()],
) -> Response:
    """The records that stand in quarantine, with stage, rule, column and message, in pages."""
    await reach(store, params.min_position)
    after = position_before(params)
    try:
        page = await quarantined(store, migration_id, after=after, limit=params.limit)
    except NotFoundError:
        raise ProblemError(NOT_FOUND, "Migration not found") from None
    cursor = None if page.after is None else cursor_after(str(page.after), params)
    rows = page.rows if caller.sees_personal_data else [without(row, QUARANTINE) for row in page.rows]
    return json_response(encode({"quarantine": rows}), headers=next_link(request, cursor))


@migrations.post("/migrations/{migration_id}/quarantine/retry", **JOB)
async def retry_quarantine(act: Acting, body: Annotated[RetryBody | None, Body()] = None) -> Response:
    """Run only what is in quarantine again, under the mapping as it is now."""
    return await act(retry_migration, "being retried", body or RetryBody())


@migrations.get(
    "/migrations/{migration_id}/report",
    response_model=None,
    responses=READ,
    openapi_extra=needs(Scope.READ_PERSONAL),
)
async def get_report(
    store: OpenStore, migration_id: PathId, params: Annotated[ReadParams, Query()]
) -> Response:
    """The newest report of a migration: accounting, quarantine, verification, times. It names records."""
    await reach(store, params.min_position)
    return json_response(encode((await _report(store, migration_id))["facts"]))


@pages.get(
    "/migrations/{migration_id}/report.html",
    response_class=HTMLResponse,
    response_model=None,
    responses={**READ, 200: {"description": "The report", "content": {"text/html": {}}}},
    openapi_extra=needs(Scope.READ_PERSONAL),
)
async def get_report_page(
    store: OpenStore, migration_id: PathId, params: Annotated[ReadParams, Query()]
) -> Response:
    """The newest report of a migration as a page that loads nothing else."""
    await reach(store, params.min_position)
    headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return HTMLResponse((await _report(store, migration_id))["html"], headers=headers)


LISTED = (
    "migration_id",
    "status",
    "progress",
    "current_step",
    "created_at",
    "ended_at",
    "quarantined",
    "dry_run",
)

SHOWN = (
    *LISTED,
    "steps_completed",
    "total_steps",
    "records",
    "records_total",
    "waits",
    "entities",
    "dagster_run_id",
    "mapping",
    "source",
    "target",
    "failure",
    "verified",
    "preview",
    "rollback",
    "rollback_preview",
)


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row as its caller sees it; the report is a link to it."""
    link = f"/migrations/{quote(row['migration_id'], safe='')}/report" if row.get("report") else None
    return {**_only(row, SHOWN), "report": link}


def _only(row: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    flat = {**row["request"], **row}
    return {name: flat.get(name) for name in names} | {"dry_run": bool(flat.get("dry_run"))}


def _started(migration_id: str, run_id: str | None, what: str) -> Response:
    content = {
        "migration_id": migration_id,
        "status": "started" if what != "cancelled" else what,
        "message": f"Migration {migration_id} {what if ' ' in what else 'was ' + what}",
        "dagster_run_id": run_id,
    }
    return accepted(content, f"/migrations/{quote(migration_id, safe='')}")


async def _report(store: OpenStore, migration_id: str) -> dict[str, Any]:
    row = await known_row(store, migration_id)
    found = await MigrationJournal(store.storage).report(row["migration_id"])
    if found is None:
        raise ProblemError(NOT_FOUND, "The migration has no report yet.")
    return found
