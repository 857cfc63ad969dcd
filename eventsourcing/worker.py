"""The worker: keeps read models up to date, feeds handlers, and minds the clock, until it is told to stop."""

from __future__ import annotations

import asyncio

from eventsourcing.bootstrap import System
from eventsourcing.handlers import AuditEventHandler, EventHandler, NotificationEventHandler
from eventsourcing.plugins import registered_handlers
from eventsourcing.process_clock import watch_clock
from eventsourcing.readmodels import READ_MODELS
from eventsourcing.supervision import lead
from eventsourcing.upkeep import keep_up

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
    """Run read models, consumer groups and the clock of processes until `stop` is set.

    Several workers share the work: each read model and each group is led by one of them, and another
    takes over when that one is gone.
    """
    for handler, group in _members():
        await system.bus.subscribe([], handler, consumer_group=group)
    await system.bus.start()
    storage = system.store.storage
    tasks = [
        asyncio.create_task(
            lead(storage, model.lease, lambda model=model: keep_up(storage, model)),  # type: ignore[misc]  # bound here
            name=model.lease,
        )
        for model in READ_MODELS
    ]
    watching = lead(storage, "process clock", lambda: watch_clock(system.store))
    tasks.append(asyncio.create_task(watching, name="process clock"))
    try:
        await stop.wait()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await system.bus.stop()
