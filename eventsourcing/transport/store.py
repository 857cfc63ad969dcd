"""The transport over the store: consumer groups follow the store itself, and publishing is appending."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar

from eventsourcing.config import EventBusConfig
from eventsourcing.consumer import GroupConsumer
from eventsourcing.events import BaseEvent
from eventsourcing.storage.base import Storage
from eventsourcing.transport.base import Arrived, Receipt, Subscription


class StoreTransport:
    """One task a consumer group; the checkpoint of a group stands beside the events."""

    relayed: ClassVar[bool] = False

    def __init__(self, config: EventBusConfig, storage: Storage) -> None:
        self._config, self._storage = config, storage
        self._consumers: dict[str, GroupConsumer] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._started = False

    async def start(self) -> None:
        """See Transport.start."""
        self._started = True
        for name in self._consumers:
            await self._launch(name)

    async def stop(self) -> None:
        """See Transport.stop. What was in hand is delivered again after the next start."""
        self._started = False
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def publish(self, events: Sequence[BaseEvent]) -> Receipt:  # noqa: ARG002 - they are in the store
        """Do nothing: what is in the store is on its way."""
        return Arrived()

    async def subscribe(self, subscription: Subscription) -> None:
        """See Transport.subscribe. Members of a group should take the same types."""
        name = subscription.group or f"{subscription.identity}#{len(self._consumers)}"
        if name in self._consumers:
            self._consumers[name].members.append(subscription)
        else:
            now = await self._storage.horizon() if subscription.group is None else 0
            self._consumers[name] = GroupConsumer(self._storage, self._config, [subscription], position=now)
        if self._started:
            await self._launch(name)

    async def _launch(self, name: str) -> None:
        """Start the consumer's task, anew when a member came: its types may have grown."""
        running = self._tasks.pop(name, None)
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        self._tasks[name] = asyncio.create_task(self._consumers[name].run(), name=f"consumer {name}")
