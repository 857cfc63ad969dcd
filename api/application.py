"""What both services are made of: errors as problems, health, documented errors, stable operation ids."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from api.access import SECURITY_SCHEMES
from api.origins import OwnPagesOnly
from api.problems import install
from api.reference import add_reference
from api.requests import JsonRoute
from api.schemas import Problem
from api.tracking import Tracking


class Lifespan(Protocol):
    """Opens what a service needs into `app.state`, and closes it at the end."""

    def __call__(self, app: FastAPI, /) -> AbstractAsyncContextManager[None]: ...


def new_application(title: str, *, lifespan: Lifespan, routers: Sequence[APIRouter]) -> FastAPI:
    """A service of these routers; its lifespan opens `app.state.system`, and `open_doors` lets callers in.

    Raises TypeError for a route of another class than JsonRoute and its kin: nothing would guard it.
    """
    for router in routers:
        for route in router.routes:
            if not isinstance(route, JsonRoute):
                raise TypeError(f"{getattr(route, 'path', route)} is no JsonRoute; nothing would guard it")
    app = FastAPI(
        title=title,
        version="1",
        lifespan=lifespan,
        generate_unique_id_function=_operation_id,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere
        redoc_url=None,
    )
    install(app)
    add_reference(app)
    layers = app.build_middleware_stack
    app.build_middleware_stack = lambda: Tracking(OwnPagesOnly(layers(), app.state))  # type: ignore[method-assign] # the outermost
    for router in routers:
        app.include_router(router)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign] # the documented way to extend it
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name


def _described(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        components = schema.setdefault("components", {})
        components.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
        components["securitySchemes"] = SECURITY_SCHEMES
        app.openapi_schema = schema
    return app.openapi_schema
