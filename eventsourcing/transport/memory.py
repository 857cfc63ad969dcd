"""The transport in memory: publishing delivers, in the caller's task, and nothing survives the process.

`publish` returns when every subscriber has taken the events or given them up as dead letters; the
aggregates of one call do not wait for each other. A group's member is chosen by aggregate, so that one
member sees all events of an aggregate, in order. An outage reaches the publisher as UnavailableError;
nothing is parked for it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import ClassVar
from weakref import WeakValueDictionary

from eventsourcing.breaker import CircuitBreaker
from eventsourcing.config import EventBusConfig
from eventsourcing.dead_letters import DeadLetter, lock_parked, park, parked_aggregates
from eventsourcing.delivery import Delivery
from eventsourcing.errors import HandlerError
from eventsourcing.events import BaseEvent
from eventsourcing.storage.base import Storage
from eventsourcing.transport.base import Arrived, Receipt, Subscription


class InMemoryTransport:
    """Delivery by call. Dead letters stand in the states of the given storage."""

    relayed: ClassVar[bool] = True

    def __init__(self, config: EventBusConfig, storage: Storage) -> None:
        self._config, self._storage = config, storage
        self._members: dict[str, list[Subscription]] = defaultdict(list)
        self._deliveries: dict[str, Delivery] = {}
        self._parked: dict[str, set[str]] = defaultdict(set)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._in_hand: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Do nothing: delivery needs no task."""

    async def stop(self) -> None:
        """Wait for the delivery in hand."""
        await asyncio.gather(*self._in_hand, return_exceptions=True)

    async def subscribe(self, subscription: Subscription) -> None:
        """See Transport.subscribe."""
        name = subscription.group or f"{subscription.identity}#{len(self._members)}"
        if subscription.group is not None:
            self._parked[name] |= await parked_aggregates(self._storage, name)
        self._members[name].append(subscription)
        if name not in self._deliveries:
            breaker = CircuitBreaker(subscription.identity, pause_s=self._config.outage_pause)
            self._deliveries[name] = Delivery(self._config, breaker)

    async def publish(self, events: Sequence[BaseEvent]) -> Receipt:
        """See Transport.publish. Of two publishers of one aggregate the first one comes first."""
        by_aggregate: dict[str, list[BaseEvent]] = defaultdict(list)
        for event in events:
            by_aggregate[event.aggregate_id].append(event)
        tasks = [asyncio.create_task(self._publish(name, theirs)) for name, theirs in by_aggregate.items()]
        self._in_hand.update(tasks)
        try:
            results = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for task in tasks:
                task.cancel()
            self._in_hand.difference_update(tasks)
        for result in results:
            if result is not None:
                raise result
        return Arrived()

    async def _publish(self, aggregate_id: str, events: list[BaseEvent]) -> None:
        """Deliver one aggregate's events; its publishers take turns, in the order they came."""
        turn = self._turns.setdefault(aggregate_id, asyncio.Lock())
        async with turn:
            for event in events:
                for name, members in list(self._members.items()):
                    takers = [member for member in members if member.takes(event)]
                    if takers:
                        await self._deliver(name, takers[hash(aggregate_id) % len(takers)], event)

    async def _deliver(self, name: str, member: Subscription, event: BaseEvent) -> None:
        if event.aggregate_id in self._parked[name] and await self._wait_behind(name, member, event):
            return
        try:
            await self._deliveries[name].attempt(member.handler, event)
        except HandlerError as failure:
            async with self._storage.transaction() as transaction:
                await park(transaction, member.identity, [DeadLetter(event, failure)])
            self._parked[name].add(event.aggregate_id)

    async def _wait_behind(self, name: str, member: Subscription, event: BaseEvent) -> bool:
        """Park the event behind its aggregate's dead letter; False when the aggregate was released."""
        async with self._storage.transaction() as transaction:
            if await lock_parked(transaction, member.identity, [event.aggregate_id]):
                await park(transaction, member.identity, [DeadLetter(event)])
                return True
        self._parked[name].discard(event.aggregate_id)
        return False
