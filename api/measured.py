"""`GET /metrics`: what a process measured, as Prometheus reads it."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.access import Scope, needs
from api.requests import TextRoute
from api.schemas import problems
from eventsourcing.metrics import CONTENT_TYPE, exposition
from eventsourcing.readings import Readings


def metrics_router() -> APIRouter:
    """The path. An application whose state has `readings` tells what the store knows, too."""
    router = APIRouter(route_class=TextRoute, tags=["health"])

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"description": "Metrics", "content": {"text/plain": {}}}, **problems(406)},
        openapi_extra=needs(Scope.METRICS),
    )
    async def metrics(request: Request) -> Response:
        """What this process and its children measured since they started; docs/metrics.md lists the names."""
        readings: Readings | None = getattr(request.app.state, "readings", None)
        more = await readings.families() if readings is not None else []
        return Response(exposition(more), media_type=CONTENT_TYPE)

    return router
