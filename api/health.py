"""Health: `/livez` asks nobody, `/readyz` asks the store, `/health` is the summary for people.

`unhealthy` (503) while the store is down. `degraded` (200) while Kafka is away, a worker does not get on, or
Dagster cannot start or execute jobs: the service does the rest of its work all the same, and what waits goes
on by itself.

Everybody may ask, so all who ask at a time share one check and its one connection, and strangers are told the
states alone: names, positions and reasons are for those who may read the metrics.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.access import OPEN, Scope
from api.dependencies import OpenSystem, json_response
from api.doors import admitted_to
from api.launcher import StartedOnDemand
from api.requests import JsonRoute
from eventsourcing import EventSourcingError
from eventsourcing.bootstrap import System
from eventsourcing.lag import Lag, lags

CHECK_TIMEOUT_S = 2.0

_FOLLOWERS = {"read-model": "read_models", "group": "consumers", "relay": "relay"}


def health_router(service: str) -> APIRouter:
    """The three paths of a service."""
    router = APIRouter(route_class=JsonRoute, tags=["health"])
    of_store, of_broker = _Shared(_store_checks), _Shared(_kafka_check)

    @router.get("/livez", response_model=None, openapi_extra=OPEN)
    async def livez() -> dict[str, Any]:
        """Whether the process answers."""
        return _report(service, "healthy", {})

    @router.get(
        "/readyz",
        response_model=None,
        responses={503: {"description": "The store is down"}},
        openapi_extra=OPEN,
    )
    async def readyz(request: Request, system: OpenSystem) -> Response:
        """Whether the service can do its work: the store answers and has our schema."""
        return await _answered(service, request, await of_store(system))

    @router.get(
        "/health",
        response_model=None,
        responses={503: {"description": "The store is down"}},
        openapi_extra=OPEN,
    )
    async def health(request: Request, system: OpenSystem) -> Response:
        """What works and what does not."""
        store, broker = await asyncio.gather(of_store(system), of_broker(system))
        return await _answered(service, request, {**store, **broker, **_jobs_check(request)})

    return router


class _Shared:
    """A check that runs once for all who ask while it runs."""

    def __init__(self, check: Callable[[System], Awaitable[dict[str, Any]]]) -> None:
        self._check = check
        self._running: asyncio.Future[dict[str, Any]] | None = None

    async def __call__(self, system: System) -> dict[str, Any]:
        """What it found."""
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(self._check(system))
        return await asyncio.shield(self._running)


def _jobs_check(request: Request) -> dict[str, Any]:
    """Whether jobs can be started here, as far as that was needed; nothing for a process without jobs."""
    jobs: StartedOnDemand | None = getattr(request.app.state, "jobs", None)
    return {} if jobs is None else {"jobs": jobs.report()}


async def _answered(service: str, request: Request, checks: dict[str, Any]) -> Response:
    states = {check["status"] for check in checks.values()}
    if checks["store"]["status"] == "down":
        status = "unhealthy"
    else:
        status = "degraded" if states & {"down", "stalled"} else "healthy"
    if request.app.state.system.settings.allow_insecure_bind:
        told = {"status": "off", "reason": "ESM_ALLOW_INSECURE_BIND is set"}
        checks = {**checks, "authentication": told}
    if not await admitted_to(request, Scope.METRICS):
        checks = {name: {"status": check["status"]} for name, check in checks.items()}
    report = _report(service, status, checks)
    return json_response(orjson.dumps(report), 503 if status == "unhealthy" else 200)


async def _store_checks(system: System) -> dict[str, Any]:
    """The store, and by their checkpoints those who follow it."""
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return await _followers(system)
    except (EventSourcingError, TimeoutError) as error:
        return {"store": {"status": "down", "reason": type(error).__name__}}


async def _followers(system: System) -> dict[str, Any]:
    storage = system.store.storage
    horizon = await storage.horizon()
    slowest: dict[str, Lag] = {}
    for lag in await lags(storage):
        if lag.kind not in slowest or lag.seconds > slowest[lag.kind].seconds:
            slowest[lag.kind] = lag
    return {"store": {"status": "up", "position": horizon}} | {
        _FOLLOWERS[kind]: {
            "status": "stalled" if lag.is_stalled else "up",
            "name": lag.name,
            "position": lag.position,
            "lag_events": lag.events,
            "lag_seconds": round(lag.seconds, 3),
        }
        for kind, lag in slowest.items()
    }


async def _kafka_check(system: System) -> dict[str, Any]:
    """Whether one of the brokers named takes connections; nothing where no broker is."""
    servers = system.settings.kafka_bootstrap_servers
    if servers is None:
        return {}
    up = any(await asyncio.gather(*map(_listens, servers.split(","))))
    return {"kafka": {"status": "up" if up else "down"}}


async def _listens(server: str) -> bool:
    host, _, port = server.strip().rpartition(":")
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except (OSError, TimeoutError, ValueError):
        return False
    writer.close()
    return True


def _report(service: str, status: str, checks: dict[str, Any]) -> dict[str, Any]:
    moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"status": status, "timestamp": moment, "service": service, "checks": checks}
