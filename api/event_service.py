"""Event Service: publish and query events, and read what the migrations came to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated
from uuid import UUID

import orjson
from fastapi import APIRouter, Body, FastAPI, Header, Query, Request
from fastapi.responses import Response

from api.access import Scope, needs
from api.application import new_application
from api.dependencies import OpenStore, event_json, json_response, reach
from api.doors import open_doors
from api.health import health_router
from api.jobs import StartedOnDemand
from api.launcher import Launcher, make_launcher
from api.measured import metrics_router
from api.migrations import migrations, pages
from api.paging import next_link, page_of_events, page_of_states
from api.problems import NOT_FOUND, POSITION_NOT_REACHED, ProblemError, problem_of
from api.read_models import read_models
from api.requests import BatchRoute, JsonRoute
from api.schemas import (
    BatchOut,
    EventBody,
    EventFilters,
    EventOut,
    PageParams,
    PathId,
    ReadParams,
    problems,
)
from api.server import serve
from eventsourcing import (
    ANY,
    BaseEvent,
    ConcurrencyError,
    DuplicateEventError,
    EventSourcingError,
    EventStore,
    InvalidEventError,
    Settings,
)
from eventsourcing.bootstrap import open_system
from eventsourcing.canonical import encode
from eventsourcing.logs import note
from eventsourcing.readmodels import (
    ADMIN_MIGRATIONS_MODEL,
    MIGRATION_STATISTICS_MODEL,
    USER_MIGRATIONS_MODEL,
    ReadModel,
)
from resources.connections import read_connections

READ = problems(406, 422, 503)
WRITE = problems(400, 406, 409, 413, 415, 422, 503)

events = APIRouter(route_class=JsonRoute, tags=["events"])
batches = APIRouter(route_class=BatchRoute, tags=["events"])
views = APIRouter(route_class=JsonRoute, tags=["migrations"])


@events.post(
    "/events",
    status_code=201,
    response_model=EventOut,
    responses={200: {"model": EventOut, "description": "Stored before"}, **WRITE},
    openapi_extra=needs(Scope.APPEND),
)
async def publish_event(store: OpenStore, body: EventBody) -> Response:
    """Store one event. The same event_id again stores nothing and answers 200 with the stored event."""
    draft = body.draft()
    note(event_id=draft.event_id, correlation_id=draft.correlation_id)
    known = body.event_id is not None and await store.get_event(body.event_id) is not None
    event = await store.append_event(draft, expected_version=body.expected_version)
    headers = {"Location": f"/events/{event.event_id}", "ES-Position": str(event.position)}
    return json_response(event_json(event), 200 if known else 201, headers)


@batches.post(
    "/events/batch",
    status_code=201,
    response_model=BatchOut,
    responses=WRITE,
    openapi_extra=needs(Scope.APPEND),
)
async def publish_batch(store: OpenStore, body: Annotated[list[EventBody], Body(min_length=1)]) -> Response:
    """Store all events or none. An event stored before is not stored again."""
    drafts = _drafts(body)
    try:
        recorded = await store.append_events(drafts, expected_version=_expected_versions(body))
    except (ConcurrencyError, DuplicateEventError) as error:
        raise problem_of(error, index=_index_of(error, drafts)) from None
    ids = [str(event.event_id) for event in recorded]
    answer = {"message": f"Published {len(ids)} events successfully", "event_ids": ids}
    headers = {"ES-Position": str(max(event.position for event in recorded))}
    return json_response(orjson.dumps(answer), 201, headers)


@events.get(
    "/events",
    response_model=list[EventOut],
    responses={**READ, **problems(409)},
    openapi_extra=needs(Scope.READ),
)
async def query_events(
    request: Request, store: OpenStore, filters: Annotated[EventFilters, Query()]
) -> Response:
    """The events that match every filter given, in pages."""
    await reach(store, filters.min_position)
    page, cursor = await page_of_events(store, filters)
    return json_response(b"[" + b",".join(page) + b"]", headers=next_link(request, cursor))


@events.get("/events/stats", response_model=None, responses=READ, openapi_extra=needs(Scope.READ))
async def event_stats(store: OpenStore, params: Annotated[ReadParams, Query()]) -> Response:
    """How many events there are, by type and by aggregate type, and the latest timestamp."""
    await reach(store, params.min_position)
    return json_response(encode(await store.get_event_stats()))


@events.get(
    "/events/{event_id}",
    response_model=EventOut,
    responses={304: {"description": "The caller has it already"}, **READ, **problems(404)},
    openapi_extra=needs(Scope.READ),
)
async def get_event(
    store: OpenStore,
    event_id: UUID,
    params: Annotated[ReadParams, Query()],
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """One event. It never changes."""
    await reach(store, params.min_position)
    event = await store.get_event(event_id)
    if event is None:
        raise ProblemError(NOT_FOUND, "Event not found")
    etag = f'"{event.event_version}"'
    if if_none_match is not None and if_none_match.removeprefix("W/") in (etag, "*"):
        return Response(status_code=304, headers={"ETag": etag})
    return json_response(event_json(event), headers={"ETag": etag})


@views.get("/migrations/stats", response_model=None, responses=READ, openapi_extra=needs(Scope.READ))
async def all_migration_stats(store: OpenStore, params: Annotated[ReadParams, Query()]) -> Response:
    """The statistics of every migration, by id."""
    await _current(store, MIGRATION_STATISTICS_MODEL, params)
    return json_response(encode(await MIGRATION_STATISTICS_MODEL.all_stats(store.storage)))


@views.get(
    "/migrations/{migration_id:path}/stats",
    response_model=None,
    responses={**READ, **problems(404)},
    openapi_extra=needs(Scope.READ),
)
async def migration_stats(
    store: OpenStore, migration_id: PathId, params: Annotated[ReadParams, Query()]
) -> Response:
    """The statistics of one migration."""
    await _current(store, MIGRATION_STATISTICS_MODEL, params)
    stats = await MIGRATION_STATISTICS_MODEL.stats(store.storage, migration_id)
    if not stats:
        raise ProblemError(NOT_FOUND, "Migration not found")
    return json_response(encode(stats))


@views.get("/users/migrations", response_model=None, responses=READ, openapi_extra=needs(Scope.READ))
async def user_migrations(
    request: Request, store: OpenStore, params: Annotated[PageParams, Query()]
) -> Response:
    """The migrated users by id, in pages; those taken back are left out."""
    return await _view(request, store, USER_MIGRATIONS_MODEL, params)


@views.get("/admins/migrations", response_model=None, responses=READ, openapi_extra=needs(Scope.READ))
async def admin_migrations(
    request: Request, store: OpenStore, params: Annotated[PageParams, Query()]
) -> Response:
    """The migrated admins by id, in pages; those taken back are left out."""
    return await _view(request, store, ADMIN_MIGRATIONS_MODEL, params)


def create_app(settings: Settings | None = None, launcher: Launcher | None = None) -> FastAPI:
    """The service over the system that these settings describe; `launcher` replaces Dagster's."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_system(settings) as system:
            read_connections(system.settings)  # a wrong file is told now, not at the first migration
            jobs = StartedOnDemand(launcher or make_launcher(system.settings))
            app.state.system, app.state.launcher = system, jobs.started
            async with open_doors(app, system):
                try:
                    yield
                finally:
                    await jobs.stop()

    routers = [
        events,
        batches,
        views,
        migrations,
        pages,
        read_models,
        health_router("event-service"),
        metrics_router(),
    ]
    return new_application("Event Service", lifespan=lifespan, routers=routers)


def main() -> None:
    """Serve on the configured port."""
    serve("event-service", create_app, lambda settings: settings.event_service_port)


async def _current(store: EventStore, model: ReadModel, params: ReadParams) -> None:
    """Bring a read model up to the horizon, which has reached what the caller asks for."""
    await reach(store, params.min_position)
    position = await model.catch_up(store.storage)
    if params.min_position is not None and position < params.min_position:  # another fold's: it stands still
        raise ProblemError(POSITION_NOT_REACHED, "The read model is being rebuilt; it is not there yet.")


async def _view(request: Request, store: EventStore, model: ReadModel, params: PageParams) -> Response:
    await _current(store, model, params)
    page, cursor = await page_of_states(store.storage, model, params)
    return json_response(encode(page), headers=next_link(request, cursor))


def _drafts(body: Sequence[EventBody]) -> list[BaseEvent]:
    drafts: list[BaseEvent] = []
    for index, entry in enumerate(body):
        try:
            drafts.append(entry.draft())
        except InvalidEventError as error:
            raise problem_of(error, index=index) from None
    return drafts


def _expected_versions(body: Sequence[EventBody]) -> dict[str, int]:
    """The version each aggregate must be at before the batch. Raises a 422 problem when two entries
    of one aggregate contradict each other."""
    expected: dict[str, int] = {}
    before: dict[str, int] = {}
    for index, entry in enumerate(body):
        place = before.get(entry.aggregate_id, 0)
        before[entry.aggregate_id] = place + 1
        if entry.expected_version == ANY:
            continue
        start = entry.expected_version - place
        if start < 0 or expected.setdefault(entry.aggregate_id, start) != start:
            error = InvalidEventError("contradicts an earlier event of the batch", field="expected_version")
            raise problem_of(error, index=index)
    return expected


def _index_of(error: EventSourcingError, drafts: Sequence[BaseEvent]) -> int | None:
    """The first event of the batch that a conflict is about."""
    for index, draft in enumerate(drafts):
        if isinstance(error, ConcurrencyError) and draft.aggregate_id == error.aggregate_id:
            return index
        if isinstance(error, DuplicateEventError) and draft.event_id == error.event_id:
            return index
    return None


if __name__ == "__main__":
    main()
