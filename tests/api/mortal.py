"""A storage whose process ends between two writes of one request; as a service: `python -m` this module."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from api.event_service import create_app
from api.server import serve
from eventsourcing import EventStoreConfig, Settings, bootstrap
from eventsourcing.storage.base import StateTransaction
from eventsourcing.storage.postgres import PostgresStorage

left: ContextVar[list[int] | None] = ContextVar("left", default=None)
"""How many begins and commits of transactions the process of this request lives to see; None of one that
lives on."""


class ProcessEnded(BaseException):
    """The process of a request is over."""


def end_request() -> None:
    """End what would have been the process, and leave that of the test."""
    raise ProcessEnded


def end_process() -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


class MortalStorage(PostgresStorage):
    """Over PostgreSQL; at the n-th begin or commit of a request it ends, and nothing is written from then
    on."""

    end: Callable[[], None] = staticmethod(end_request)

    @asynccontextmanager
    async def transaction(self, *, snapshot: bool = False) -> AsyncIterator[StateTransaction]:
        self._live()
        async with super().transaction(snapshot=snapshot) as transaction:
            yield transaction
            self._live()

    def _live(self) -> None:
        lives = left.get()
        if lives is not None:
            if lives[0] == 0:
                self.end()
            lives[0] -= 1


def storage_of(config: EventStoreConfig, _: Path) -> MortalStorage:
    """Such a storage over the database of the settings."""
    return MortalStorage(str(config.database_url))


class Mortality:
    """Lets a POST live for as many of these as the environment's LIVES says."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            left.set([int(os.environ["LIVES"])])
        await self._app(scope, receive, send)


def create(settings: Settings) -> FastAPI:
    """The Event Service over such a storage."""
    MortalStorage.end = staticmethod(end_process)
    setattr(bootstrap, "database_storage", storage_of)  # noqa: B010 - what it opens
    app = create_app(settings)
    app.add_middleware(Mortality)
    return app


if __name__ == "__main__":
    serve("event-service", create, lambda settings: settings.event_service_port)
