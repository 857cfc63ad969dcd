"""What the routes of a service share: the open system, and reads that wait for a position."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any

import orjson
from fastapi import Depends, Request
from fastapi.responses import Response

from api.launcher import Launcher, StartedOnDemand
from api.problems import POSITION_NOT_REACHED, UNAVAILABLE, ProblemError
from eventsourcing import EventStore, RecordedEvent
from eventsourcing.bootstrap import System
from eventsourcing.personal import masked_fields

POSITION_WAIT_S = 5.0
"""How long a read waits for its `min_position`."""


async def _system(request: Request) -> System:
    system: System = request.app.state.system
    return system


async def _store(request: Request) -> EventStore:
    store: EventStore = request.app.state.system.store
    return store


async def _launcher(request: Request) -> Launcher:
    try:
        jobs: StartedOnDemand = request.app.state.jobs
        launcher = await jobs.started()
    except Exception as error:
        raise ProblemError(UNAVAILABLE, "Jobs cannot be started here.") from error
    return launcher


async def _launcher_when_asked(request: Request) -> Callable[[], Awaitable[Launcher]]:
    return partial(_launcher, request)


# FastAPI sends a dependency that is no coroutine to a thread, which costs more than the whole route.
OpenSystem = Annotated[System, Depends(_system)]
"""The system that the service's lifespan opened."""

OpenStore = Annotated[EventStore, Depends(_store)]
"""Its event store."""


Jobs = Annotated[Launcher, Depends(_launcher)]
"""The launcher, started. Raises a 503 problem when it cannot start; the next call tries again."""


JobsIfNeeded = Annotated[Callable[[], Awaitable[Launcher]], Depends(_launcher_when_asked)]
"""The same for a route that may come to need no job: it is started when it is called."""


async def reach(store: EventStore, position: int | None) -> None:
    """Open the store, and return once nothing at or below the position can appear any more.

    Raises a 503 problem after 5 seconds: an append in flight is slow, or nobody was given the position.
    """
    await store.initialize()
    deadline, pause = time.monotonic() + POSITION_WAIT_S, 0.01
    while position and await store.horizon() < position:
        if time.monotonic() + pause > deadline:
            raise ProblemError(POSITION_NOT_REACHED, POSITION_NOT_REACHED.meaning)
        await asyncio.sleep(pause)
        pause = min(pause * 2, 0.2)


def event_json(event: RecordedEvent, *, masked: bool) -> bytes:
    """A stored event as JSON, its personal data `masked` or not. It was checked when it was appended;
    nothing is validated again."""
    fields = masked_fields(event) if masked else event.__dict__
    return orjson.dumps(fields, default=str, option=orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC)


def accepted(content: dict[str, Any], place: str) -> Response:
    """The answer that a job was started, and where to ask how it gets on."""
    return json_response(orjson.dumps(content), 202, {"Location": place, "Retry-After": "1"})


def json_response(content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer whose JSON is ready."""
    return Response(content, status, headers, media_type="application/json")
