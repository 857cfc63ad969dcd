"""The worker: keeps the read models up to date and feeds the handlers, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging

from eventsourcing.bootstrap import System
from eventsourcing.delivery import backoff
from eventsourcing.handlers import AuditEventHandler, EventHandler, NotificationEventHandler
from eventsourcing.plugins import registered_handlers
from eventsourcing.query import EventQuery
from eventsourcing.readmodels import READ_MODELS
from eventsourcing.storage.base import Storage
from eventsourcing.tail import follow

_log = logging.getLogger(__name__)

STAND_BY_S = 1.0

OWN_HANDLERS: tuple[tuple[EventHandler, str], ...] = (
    (NotificationEventHandler(), "notifications"),
    (AuditEventHandler(), "audit"),
)
"""The handlers of every installation and their consumer groups."""


async def run_worker(system: System, stop: asyncio.Event) -> None:
    """Run read models and consumer groups until `stop` is set. Several workers share the work."""
    for handler, group in (*OWN_HANDLERS, *((r.handler, r.consumer_group) for r in registered_handlers())):
        await system.bus.subscribe([], handler, consumer_group=group)
    await system.bus.start()
    folds = asyncio.create_task(fold_forever(system.store.storage), name="read models")
    try:
        await stop.wait()
    finally:
        folds.cancel()
        await asyncio.gather(folds, return_exceptions=True)
        await system.bus.stop()


async def fold_forever(storage: Storage) -> None:
    """Follow the store and apply everything to every read model, until cancelled.

    One worker folds at a time. A fault is logged, waited out, and folding resumes at the checkpoints.
    """
    failures = 0
    while True:
        try:
            async with storage.lease("read-models") as ours:
                if ours:
                    await _fold(storage)
            await asyncio.sleep(STAND_BY_S)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - the supervising loop of the read models
            failures += 1
            _log.warning("read models paused: %s", error)
            await asyncio.sleep(backoff(min(failures, 6), 1.0))


async def _fold(storage: Storage) -> None:
    behind = min([await model.position(storage) for model in READ_MODELS])
    async for piece in follow(storage, EventQuery(), after=behind, batch_size=1000):
        for model in READ_MODELS:
            await model.apply(storage, piece.events, position=piece.position)
