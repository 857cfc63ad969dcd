"""Event Service: publish and query events, and read what the migrations came to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, FastAPI, Header, Query, Request
from fastapi.responses import Response

from api.access import Caller, CurrentCaller, Scope, needs
from api.application import new_application
from api.audit import audit
from api.bulk import bulk
from api.consumers import consumers
from api.dead_letters import dead_letters
from api.dependencies import OpenStore, event_json, json_response, reach
from api.doors import open_doors
from api.health import health_router
from api.launcher import Launcher, StartedOnDemand, make_launcher
from api.limits import Turns
from api.measured import metrics_router
from api.migrations import migrations, pages
from api.paging import next_link, page_of_events, page_of_states
from api.problems import NOT_FOUND, POSITION_NOT_REACHED, ProblemError
from api.publishing import batches, publishing
from api.read_models import read_models
from api.readiness import readiness
from api.requests import JsonRoute
from api.schemas import (
    EventFilters,
    EventOut,
    PageParams,
    PathId,
    ReadParams,
    problems,
)
from api.server import serve
from eventsourcing import (
    EventStore,
    Settings,
)
from eventsourcing.bootstrap import open_system
from eventsourcing.canonical import encode
from eventsourcing.personal import RECORD_VIEW, STATISTICS, without
from eventsourcing.readmodels import (
    ADMIN_MIGRATIONS_MODEL,
    MIGRATION_STATISTICS_MODEL,
    USER_MIGRATIONS_MODEL,
    ReadModel,
)
from resources.connections import read_connections

READ = problems(406, 422, 503)

events = APIRouter(route_class=JsonRoute, tags=["events"])
views = APIRouter(route_class=JsonRoute, tags=["migrations"])


@events.get(
    "/events",
    response_model=list[EventOut],
    responses={**READ, **problems(409)},
    openapi_extra=needs(Scope.READ),
)
async def query_events(
    request: Request, store: OpenStore, caller: CurrentCaller, filters: Annotated[EventFilters, Query()]
) -> Response:
    """The events that match every filter given, in pages."""
    await reach(store, filters.min_position)
    readings: Turns = request.app.state.readings_of_events
    async with readings.turn():
        page, cursor = await page_of_events(store, filters, masked=not caller.sees_personal_data)
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
    caller: CurrentCaller,
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
    return json_response(event_json(event, masked=not caller.sees_personal_data), headers={"ETag": etag})


@views.get("/migrations/stats", response_model=None, responses=READ, openapi_extra=needs(Scope.READ))
async def all_migration_stats(
    store: OpenStore, caller: CurrentCaller, params: Annotated[ReadParams, Query()]
) -> Response:
    """The statistics of every migration, by id."""
    await _current(store, MIGRATION_STATISTICS_MODEL, params)
    return _shown(await MIGRATION_STATISTICS_MODEL.all_stats(store.storage), STATISTICS, caller)


@views.get(
    "/migrations/{migration_id:path}/stats",
    response_model=None,
    responses={**READ, **problems(404)},
    openapi_extra=needs(Scope.READ),
)
async def migration_stats(
    store: OpenStore, caller: CurrentCaller, migration_id: PathId, params: Annotated[ReadParams, Query()]
) -> Response:
    """The statistics of one migration."""
    await _current(store, MIGRATION_STATISTICS_MODEL, params)
    stats = await MIGRATION_STATISTICS_MODEL.stats(store.storage, migration_id)
    if not stats:
        raise ProblemError(NOT_FOUND, "Migration not found")
    return _shown(stats, STATISTICS, caller)


@views.get("/users/migrations", response_model=None, responses=READ, openapi_extra=needs(Scope.READ))
async def user_migrations(
    request: Request, store: OpenStore, caller: CurrentCaller, params: Annotated[PageParams, Query()]
) -> Response:
    """The migrated users by id, in pages; those taken back are left out."""
    return await _view(request, store, USER_MIGRATIONS_MODEL, caller, params)


@views.get("/admins/migrations", response_model=None, responses=READ, openapi_extra=needs(Scope.READ))
async def admin_migrations(
    request: Request, store: OpenStore, caller: CurrentCaller, params: Annotated[PageParams, Query()]
) -> Response:
    """The migrated admins by id, in pages; those taken back are left out."""
    return await _view(request, store, ADMIN_MIGRATIONS_MODEL, caller, params)


def create_app(settings: Settings | None = None, launcher: Launcher | None = None) -> FastAPI:
    """The service over the system that these settings describe; `launcher` replaces Dagster's."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_system(settings) as system:
            read_connections(system.settings)  # a wrong file is told now, not at the first migration
            jobs = StartedOnDemand(
                lambda: launcher or make_launcher(system.settings),
                ready=None if launcher else readiness(system.settings),
            )
            app.state.system, app.state.jobs = system, jobs
            # A filter that matches next to nothing looks at every event; it may not take the whole pool.
            app.state.readings_of_events = Turns(max(system.settings.pool_size // 2, 1))
            async with open_doors(app, system):
                try:
                    jobs.look_ahead()
                    yield
                finally:
                    await jobs.stop()

    routers = [
        publishing,
        batches,
        bulk,
        events,
        views,
        audit,
        migrations,
        pages,
        read_models,
        dead_letters,
        consumers,
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


async def _view(
    request: Request, store: EventStore, model: ReadModel, caller: Caller, params: PageParams
) -> Response:
    await _current(store, model, params)
    page, cursor = await page_of_states(store.storage, model, params)
    return _shown(page, RECORD_VIEW, caller, headers=next_link(request, cursor))


def _shown(
    view: dict[str, Any], personal: frozenset[str], caller: Caller, *, headers: dict[str, str] | None = None
) -> Response:
    seen = view if caller.sees_personal_data else without(view, personal)
    return json_response(encode(seen), headers=headers)


if __name__ == "__main__":
    main()
