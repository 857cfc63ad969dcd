"""The transport in memory: publishing delivers, in the caller's task, and nothing survives the process.

`publish` returns when every subscriber has taken the event or given it up as a dead letter. A group's
member is chosen by aggregate, so that one member sees all events of an aggregate, in order. An outage
reaches the publisher as UnavailableError; nothing is parked for it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import ClassVar

from eventsourcing.config import EventBusConfig
from eventsourcing.dead_letters import DeadLetter, park, parked_aggregates
from eventsourcing.delivery import call_with_retry, is_outage
from eventsourcing.errors import HandlerError, UnavailableError
from eventsourcing.events import BaseEvent
from eventsourcing.storage.base import Storage
from eventsourcing.transport.base import Arrived, Receipt, Subscription


class InMemoryTransport:
    """Delivery by call. Dead letters stand in the states of the given storage."""

    relayed: ClassVar[bool] = True

    def __init__(self, config: EventBusConfig, storage: Storage) -> None:
        self._config, self._storage = config, storage
        self._members: dict[str, list[Subscription]] = defaultdict(list)
        self._parked: dict[str, set[str]] = defaultdict(set)
        self._order = asyncio.Lock()

    async def start(self) -> None:
        """Do nothing: delivery needs no task."""

    async def stop(self) -> None:
        """Wait for the delivery in hand."""
        async with self._order:
            return

    async def subscribe(self, subscription: Subscription) -> None:
        """See Transport.subscribe."""
        if subscription.group is None:
            self._members[f"{subscription.identity}#{len(self._members)}"].append(subscription)
            return
        self._parked[subscription.group] |= await parked_aggregates(self._storage, subscription.group)
        self._members[subscription.group].append(subscription)

    async def publish(self, events: Sequence[BaseEvent]) -> Receipt:
        """See Transport.publish. One publisher at a time keeps the order."""
        async with self._order:
            for event in events:
                for name, members in list(self._members.items()):
                    takers = [member for member in members if member.takes(event)]
                    if takers:
                        await self._deliver(name, takers[hash(event.aggregate_id) % len(takers)], event)
        return Arrived()

    async def _deliver(self, name: str, member: Subscription, event: BaseEvent) -> None:
        letter = DeadLetter(event)
        if event.aggregate_id not in self._parked[name]:
            try:
                await call_with_retry(
                    member.handler,
                    event,
                    retries=self._config.retry_attempts,
                    delay_s=self._config.retry_delay,
                )
            except HandlerError as failure:
                if failure.__cause__ is not None and is_outage(failure.__cause__):
                    raise UnavailableError(str(failure)) from failure
                letter = DeadLetter(event, failure)
            else:
                return
        async with self._storage.transaction() as transaction:
            await park(transaction, member.identity, [letter])
        self._parked[name].add(event.aggregate_id)
