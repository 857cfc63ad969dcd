"""Health: `/livez` asks nobody, `/readyz` asks the store, `/health` is the summary for people."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import orjson
from fastapi import APIRouter
from fastapi.responses import Response

from api.access import OPEN
from api.dependencies import OpenSystem, json_response
from api.requests import JsonRoute
from eventsourcing import EventSourcingError
from eventsourcing.bootstrap import System
from eventsourcing.readmodels import READ_MODELS
from eventsourcing.storage.base import CHECKPOINTS

CHECK_TIMEOUT_S = 2.0


def health_router(service: str) -> APIRouter:
    """The three paths of a service. 503 and `unhealthy` while the store is down."""
    router = APIRouter(route_class=JsonRoute, tags=["health"])

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
    async def readyz(system: OpenSystem) -> Response:
        """Whether the service can do its work: the store answers and has our schema."""
        return await _checked(service, system)

    @router.get(
        "/health",
        response_model=None,
        responses={503: {"description": "The store is down"}},
        openapi_extra=OPEN,
    )
    async def health(system: OpenSystem) -> Response:
        """What works and what does not."""
        return await _checked(service, system)

    return router


async def _checked(service: str, system: System) -> Response:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            checks = await _store_checks(system)
        status = "healthy"
    except (EventSourcingError, TimeoutError) as error:
        checks, status = {"store": {"status": "down", "reason": type(error).__name__}}, "unhealthy"
    if system.settings.allow_insecure_bind:
        checks["authentication"] = {"status": "off", "reason": "ESM_ALLOW_INSECURE_BIND is set"}
    report = _report(service, status, checks)
    return json_response(orjson.dumps(report), 200 if status == "healthy" else 503)


async def _store_checks(system: System) -> dict[str, Any]:
    storage = system.store.storage
    horizon = await storage.horizon()
    keys = [model.checkpoint_key for model in READ_MODELS]
    async with storage.transaction() as transaction:
        checkpoints = await transaction.get_many(CHECKPOINTS, keys)
    behind = min((checkpoints.get(key, {"position": 0})["position"] for key in keys), default=0)
    return {
        "store": {"status": "up", "position": horizon},
        "read_models": {"position": behind, "lag_events": max(horizon - behind, 0)},
    }


def _report(service: str, status: str, checks: dict[str, Any]) -> dict[str, Any]:
    moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"status": status, "timestamp": moment, "service": service, "checks": checks}
