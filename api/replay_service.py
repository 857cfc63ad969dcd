"""Replay Service: replays, snapshots and sequence checks as jobs, and the stream of events."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID

import orjson
from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request
from fastapi.responses import Response

from api.access import Caller, CurrentCaller, Scope, needs
from api.application import new_application
from api.dependencies import Jobs, OpenStore, accepted, json_response, reach
from api.doors import admitted_to, open_doors
from api.feed import LiveFeed
from api.health import health_router
from api.idempotency import DoneOnce
from api.jobs import (
    SNAPSHOT,
    VALIDATION,
    answer,
    cancel_replay,
    finished_replay,
    settle_replays,
    start_replay,
)
from api.jobs import (
    resume_replay as resumed,
)
from api.launcher import Launcher, StartedOnDemand, make_launcher
from api.measured import metrics_router
from api.paging import cursor_after, key_before, next_link
from api.problems import NOT_FOUND, ProblemError, invalid_field
from api.requests import JsonRoute, StreamRoute
from api.schemas import (
    PageParams,
    PathId,
    ReadParams,
    ReplayBody,
    SequenceBody,
    SnapshotBody,
    StreamParams,
    WaitParams,
    problems,
)
from api.server import serve
from api.sse import EventStream, StreamResponse, event_frame, first_position, masked_frame
from eventsourcing import NotFoundError, Settings
from eventsourcing.bootstrap import open_system
from eventsourcing.canonical import encode
from eventsourcing.personal import REPLAY, masked_state, without
from eventsourcing.process_models import process_model
from eventsourcing.replays import ReplayJournal
from eventsourcing.snapshots import newest_snapshot

READ = problems(406, 422, 503)
JOB = problems(400, 406, 409, 413, 415, 422, 500, 503)

replays = APIRouter(route_class=JsonRoute, tags=["replays"])
aggregates = APIRouter(route_class=JsonRoute, tags=["aggregates"])
streams = APIRouter(route_class=StreamRoute, tags=["events"])


async def _feed(request: Request) -> LiveFeed:
    feed: LiveFeed = request.app.state.feed
    return feed


@replays.post(
    "/replay", status_code=202, response_model=None, responses=JOB, openapi_extra=needs(Scope.REPLAY)
)
async def create_replay(store: OpenStore, jobs: Jobs, body: ReplayBody, once: DoneOnce) -> Response:
    """Start a replay. It runs as a Dagster job into states of its own and has no outside effect."""

    async def start(token: UUID) -> Response:
        replay_id = await start_replay(store, jobs, body, token)
        content = {"replay_id": replay_id, "status": "started", "message": f"Replay {replay_id} started"}
        return accepted(content, f"/replay/{replay_id}")

    return await once(start)


@replays.get("/replay", response_model=None, responses=READ, openapi_extra=needs(Scope.READ))
async def list_replays(
    request: Request, store: OpenStore, params: Annotated[PageParams, Query()]
) -> Response:
    """All replays, newest first, in pages."""
    await reach(store, params.min_position)
    before = key_before(params)
    rows = await ReplayJournal(store.storage).page(before=before, limit=params.limit + 1)
    page = rows[: params.limit]
    cursor = cursor_after(page[-1]["replay_id"], params) if len(rows) > params.limit else None
    return json_response(
        encode({"replays": [_only(row, LISTED) for row in page]}), headers=next_link(request, cursor)
    )


@replays.get(
    "/replay/{replay_id}",
    response_model=None,
    responses={**READ, **problems(404)},
    openapi_extra=needs(Scope.READ),
)
async def get_replay(
    store: OpenStore, caller: CurrentCaller, replay_id: str, params: Annotated[WaitParams, Query()]
) -> Response:
    """One replay; `wait` holds the answer back until it has ended, for so many seconds at most."""
    _require_form(replay_id)
    await reach(store, params.min_position)
    row = await finished_replay(ReplayJournal(store.storage), replay_id, wait_s=params.wait)
    if row is None:
        raise ProblemError(NOT_FOUND, "Replay not found")
    shown = {**_only(row, SHOWN), "state_hash": row.get("state_hashes", {})}
    return json_response(encode(shown if caller.sees_personal_data else without(shown, REPLAY)))


@replays.delete(
    "/replay/{replay_id}",
    response_model=None,
    responses={**READ, **problems(404, 409)},
    openapi_extra=needs(Scope.REPLAY),
)
async def delete_replay(store: OpenStore, jobs: Jobs, replay_id: str) -> Response:
    """Stop a replay; answered once it has stopped."""
    _require_form(replay_id)
    if await ReplayJournal(store.storage).get(replay_id) is None:
        raise ProblemError(NOT_FOUND, "Replay not found")
    await cancel_replay(store, jobs, replay_id)
    return json_response(orjson.dumps({"message": f"Replay {replay_id} cancelled"}))


@replays.post(
    "/replay/{replay_id}/resume",
    status_code=202,
    response_model=None,
    responses={**JOB, **problems(404)},
    openapi_extra=needs(Scope.REPLAY),
)
async def resume_replay(store: OpenStore, jobs: Jobs, replay_id: str, once: DoneOnce) -> Response:
    """Go on with a replay that was interrupted, failed or cancelled, from where it is."""
    _require_form(replay_id)

    async def go_on(token: UUID) -> Response:
        await resumed(store, jobs, replay_id, token)
        content = {"replay_id": replay_id, "status": "started", "message": f"Replay {replay_id} resumed"}
        return accepted(content, f"/replay/{replay_id}")

    return await once(go_on)


@aggregates.post(
    "/snapshot",
    status_code=201,
    response_model=None,
    responses={**JOB, **problems(404)},
    openapi_extra=needs(Scope.REPLAY),
)
async def create_snapshot(
    store: OpenStore, jobs: Jobs, caller: CurrentCaller, body: SnapshotBody, once: DoneOnce
) -> Response:
    """Fold an aggregate into its state at a version, and keep that."""

    async def take(token: UUID) -> Response:
        snapshot = await answer(store, jobs, SNAPSHOT, body.model_dump(), token)
        headers = {"Location": f"/snapshot/{quote(body.aggregate_id, safe='')}"}
        return json_response(encode(_seen_by(caller, snapshot)), 201, headers)

    return await once(take)


@aggregates.get(
    "/snapshot/{aggregate_id:path}",
    response_model=None,
    responses={**READ, **problems(404)},
    openapi_extra=needs(Scope.READ),
)
async def get_snapshot(
    store: OpenStore,
    caller: CurrentCaller,
    aggregate_id: PathId,
    params: Annotated[ReadParams, Query()],
) -> Response:
    """The newest snapshot of an aggregate."""
    await reach(store, params.min_position)
    snapshot = await newest_snapshot(store.storage, aggregate_id)
    if snapshot is None:
        raise ProblemError(NOT_FOUND, "Snapshot not found")
    return json_response(encode(_seen_by(caller, snapshot)))


@aggregates.post(
    "/validate-sequence",
    response_model=None,
    responses={**JOB, **problems(404)},
    openapi_extra=needs(Scope.REPLAY),
)
async def validate_sequence(store: OpenStore, jobs: Jobs, body: SequenceBody, once: DoneOnce) -> Response:
    """Compare the event types of an aggregate with those it should have, or with a process model."""
    _require_model(body.model)

    async def compare(token: UUID) -> Response:
        return json_response(encode(await answer(store, jobs, VALIDATION, body.model_dump(), token)))

    return await once(compare)


@streams.get(
    "/events/stream",
    response_class=Response,
    response_model=None,
    responses={
        200: {"description": "Events without end", "content": {"text/event-stream": {}}},
        **READ,
        **problems(409),
    },
    openapi_extra=needs(Scope.READ),
)
async def stream_events(
    request: Request,
    store: OpenStore,
    feed: Annotated[LiveFeed, Depends(_feed)],
    caller: CurrentCaller,
    params: Annotated[StreamParams, Query()],
    last_event_id: Annotated[str | None, Header(pattern=r"^\d{0,18}$")] = None,
) -> Response:
    """Server-sent events: history from the point asked for, then live, without a gap or a repeat."""
    after = await first_position(store, feed, after=params.after, last_event_id=last_event_id)
    encode = event_frame if caller.sees_personal_data else masked_frame
    stream = EventStream(store, feed, params.query(), after=after, encode=encode)
    return StreamResponse(stream, still_admitted=partial(admitted_to, request, Scope.READ))


def create_app(settings: Settings | None = None, launcher: Launcher | None = None) -> FastAPI:
    """The service over the system that these settings describe; `launcher` replaces Dagster's."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_system(settings) as system:
            jobs = StartedOnDemand(
                lambda: launcher or make_launcher(system.settings),
                then=partial(settle_replays, system.store),
            )
            app.state.system, app.state.jobs = system, jobs
            app.state.feed = LiveFeed(system.store, event_frame)
            async with open_doors(app, system):
                try:
                    jobs.start_ahead()
                    yield
                finally:
                    await jobs.stop()

    routers = [replays, aggregates, streams, health_router("replay-service"), metrics_router()]
    return new_application("Replay Service", lifespan=lifespan, routers=routers)


def main() -> None:
    """Serve on the configured port."""
    serve("replay-service", create_app, lambda settings: settings.replay_service_port)


LISTED = ("replay_id", "status", "replay_type", "start_time", "end_time")

SHOWN = (
    *LISTED,
    "total_events",
    "processed_events",
    "failed_events",
    "success_rate",
    "duration",
    "errors",
    "error_count",
    "failure",
    "difference",
    "progress",
    "rate",
    "eta",
    "position",
    "from_snapshot",
    "dagster_run_id",
)


def _only(row: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: row.get(name) for name in names}


def _seen_by(caller: Caller, snapshot: dict[str, Any]) -> dict[str, Any]:
    if caller.sees_personal_data:
        return snapshot
    shown = {
        "state": masked_state(snapshot["state"]),
        "replay_result": without(snapshot["replay_result"], REPLAY),
    }
    return {**snapshot, **shown}


def _require_model(name: str | None) -> None:
    """Raise a 422 problem for the name of no process model."""
    try:
        if name is not None:
            process_model(name)
    except NotFoundError:
        raise invalid_field("model", "names no process model") from None


def _require_form(replay_id: str) -> None:
    """Raise a 404 problem for what cannot be the id of a replay."""
    if not re.fullmatch(r"replay_\d{8}_\d{6}_\d{1,10}", replay_id, re.ASCII):
        raise ProblemError(NOT_FOUND, "Replay not found")


if __name__ == "__main__":
    main()
