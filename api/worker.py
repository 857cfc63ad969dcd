"""The worker as a server: its work goes on beside its health and its metrics."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from api.application import new_application
from api.doors import open_doors
from api.health import health_router
from api.measured import metrics_router
from eventsourcing import Settings
from eventsourcing.bootstrap import open_system
from eventsourcing.readings import Readings
from eventsourcing.worker import run_worker


def create_app(settings: Settings | None = None) -> FastAPI:
    """Health and metrics of a worker, which works for as long as they are served."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_system(settings) as system:
            app.state.system, app.state.readings = system, Readings(system)
            stop = asyncio.Event()
            work = asyncio.create_task(run_worker(system, stop), name="worker")
            work.add_done_callback(_leave_with)
            try:
                async with open_doors(app, system):
                    yield
            finally:
                stop.set()
                await work

    return new_application("Worker", lifespan=lifespan, routers=[health_router("worker"), metrics_router()])


def _leave_with(work: asyncio.Task[None]) -> None:
    """End the process whose work ended by itself: it could not begin."""
    if not work.cancelled() and work.exception() is not None:
        signal.raise_signal(signal.SIGTERM)
