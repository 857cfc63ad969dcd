"""Both services with authentication on, and callers of every kind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx2

from api import event_service, replay_service
from api.access import ALL_SCOPES, Scope
from api.keys import create_key
from eventsourcing import EventStore, Settings
from tests.api.conftest import InlineLauncher, serving


def guarded(settings: Settings, **changes: Any) -> Settings:
    """The same settings with authentication on."""
    return settings.model_copy(update={"authentication": "on", **changes})


async def key_for(
    store: EventStore, *scopes: Scope, name: str | None = None, lasts: timedelta | None = None
) -> tuple[str, str]:
    """The id and the text of a new key."""
    key, text = await create_key(store.storage, name or f"t-{uuid4().hex[:8]}", scopes, lasts=lasts)
    return key.id, text


def bearer(text: str) -> dict[str, str]:
    """The header that says who calls."""
    return {"Authorization": f"Bearer {text}"}


async def caller(client: httpx2.AsyncClient, store: EventStore, *scopes: Scope) -> dict[str, str]:
    """The header of a new key with these scopes."""
    del client
    return bearer((await key_for(store, *scopes))[1])


@asynccontextmanager
async def both(
    settings: Settings, launcher: InlineLauncher, of_events: InlineLauncher | None = None
) -> AsyncIterator[dict[str, httpx2.AsyncClient]]:
    """A client of each service, open together; `of_events` starts the Event Service's jobs."""
    async with (
        serving(event_service.create_app(settings, of_events)) as events,
        serving(replay_service.create_app(settings, launcher)) as replays,
    ):
        yield {"event-service": events, "replay-service": replays}


def operations(document: dict[str, Any]) -> Iterable[tuple[str, str, dict[str, Any]]]:
    """Method, path and declaration of every operation of an OpenAPI document."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def declared_scopes(operation: dict[str, Any]) -> set[Scope]:
    """Any one of which opens an operation; an open one needs none. KeyError: it declares nothing."""
    security = operation["security"]
    return {Scope(scope) for way in security for scopes in way.values() for scope in scopes} or set(
        ALL_SCOPES
    )
