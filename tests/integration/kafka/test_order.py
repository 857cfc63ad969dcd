"""Order within each aggregate over topics by type: 8 topics, 500 aggregates, live and when catching up."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict

import pytest

from eventsourcing import EventBus, EventBusConfig, EventStore
from eventsourcing.events import BaseEvent
from eventsourcing.testing import InMemoryHandler
from eventsourcing.transport import kafka_consumer
from tests.factories import draft
from tests.integration.kafka.lab import relayed

TYPES = [f"order.{name}" for name in "abcdefgh"]
AGGREGATES = 500


def history(seed: int) -> list[list[BaseEvent]]:
    """Every aggregate's life through eight types, mixed, in the batches of a busy writer."""
    chance = random.Random(seed)
    lives = [
        [draft(f"order-{number}", chance.choice(TYPES)) for _ in range(8)] for number in range(AGGREGATES)
    ]
    turns = [number for number, life in enumerate(lives) for _ in life]
    chance.shuffle(turns)
    mixed = [lives[number].pop() for number in turns]
    return [mixed[start : start + 200] for start in range(0, len(mixed), 200)]


async def faults(handler: InMemoryHandler, store: EventStore, types: list[str]) -> dict[str, int]:
    """How many events were overtaken, repeated or missed, once the handler has been quiet for a while."""
    expected = {event.event_id async for event in store.get_all_events() if event.event_type in types}
    async with asyncio.timeout(60):
        calls, quiet = -1, 0
        while len(handler.events) < len(expected) and quiet < 20:
            quiet = quiet + 1 if handler.calls == calls else 0
            calls = handler.calls
            await asyncio.sleep(0.1)
    last: dict[str, int] = defaultdict(int)
    overtaken = 0
    for event in handler.events:
        overtaken += event.event_version < last[event.aggregate_id]
        last[event.aggregate_id] = max(last[event.aggregate_id], event.event_version)
    ids = [event.event_id for event in handler.events]
    return {
        "overtaken": overtaken,
        "repeated": len(ids) - len(set(ids)),
        "missed": len(expected - set(ids)),
    }


async def deliver(
    store: EventStore, config: EventBusConfig, types: list[str], *, live: bool
) -> dict[str, int]:
    handler = InMemoryHandler()
    if not live:
        async with EventBus(config, store=store):  # the relay alone: the topics are full when the group comes
            for batch in history(1):
                await store.append_events(batch)
            await relayed(store)
    bus = EventBus(config, store=store)
    await bus.subscribe(types, handler, consumer_group="reader")
    async with bus:
        if live:
            for batch in history(2):
                await store.append_events(batch)
                await asyncio.sleep(0.01)
        return await faults(handler, store, types)


@pytest.mark.parametrize("types", [TYPES, TYPES[:3]], ids=["eight topics", "three of them"])
@pytest.mark.parametrize("live", [True, False], ids=["live", "catching up"])
async def test_no_event_overtakes_another_of_its_aggregate(
    store: EventStore, kafka: EventBusConfig, types: list[str], live: bool
) -> None:
    assert await deliver(store, kafka, types, live=live) == {"overtaken": 0, "repeated": 0, "missed": 0}


async def test_without_the_gate_the_order_is_lost(
    store: EventStore, kafka: EventBusConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: events go through as they come, and what is overtaken counts as repeated."""
    monkeypatch.setattr(kafka_consumer, "newest_predecessor", lambda *_: 0)

    found = await deliver(store, kafka, TYPES, live=False)

    assert found["overtaken"] + found["missed"] > 0
