"""The worker: keeps the read models up to date and feeds the handlers, until it is told to stop."""

from __future__ import annotations

import asyncio

from eventsourcing.bootstrap import System
from eventsourcing.handlers import AuditEventHandler, EventHandler, NotificationEventHandler
from eventsourcing.plugins import registered_handlers
from eventsourcing.query import EventQuery
from eventsourcing.readmodels import READ_MODELS
from eventsourcing.storage.base import Storage
from eventsourcing.supervision import lead
from eventsourcing.tail import follow

OWN_HANDLERS: tuple[tuple[EventHandler, str], ...] = (
    (NotificationEventHandler(), "notifications"),
    (AuditEventHandler(), "audit"),
)
"""The handlers of every installation and their consumer groups."""


def group_handlers(group: str) -> list[EventHandler]:
    """The handlers that a worker feeds in a consumer group; none of a group that is not the worker's."""
    return [handler for handler, name in _members() if name == group]


def _members() -> list[tuple[EventHandler, str]]:
    return [*OWN_HANDLERS, *((entry.handler, entry.consumer_group) for entry in registered_handlers())]


async def run_worker(system: System, stop: asyncio.Event) -> None:
    """Run read models and consumer groups until `stop` is set. Several workers share the work."""
    for handler, group in _members():
        await system.bus.subscribe([], handler, consumer_group=group)
    await system.bus.start()
    storage = system.store.storage
    folds = asyncio.create_task(lead(storage, "read-models", lambda: _fold(storage)), name="read models")
    try:
        await stop.wait()
    finally:
        folds.cancel()
        await asyncio.gather(folds, return_exceptions=True)
        await system.bus.stop()


async def _fold(storage: Storage) -> None:
    """Follow the store and apply everything to every read model."""
    behind = min([await model.position(storage) for model in READ_MODELS])
    async for piece in follow(storage, EventQuery(), after=behind, batch_size=1000):
        for model in READ_MODELS:
            await model.apply(storage, piece.events, position=piece.position)
