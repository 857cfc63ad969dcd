"""An event whose payload this release cannot read: over Kafka too it holds up its own aggregate alone."""

from __future__ import annotations

from typing import Any

import pytest

from eventsourcing import EventBus, EventBusConfig, EventStore
from eventsourcing.dead_letters import dead_letters
from eventsourcing.relay import RELAY
from eventsourcing.testing import InMemoryHandler
from tests.factories import draft
from tests.integration.kafka.lab import relayed
from tests.seats import TYPE, own_registry, release
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("own_registry")
__all__ = ["own_registry"]

GOOD: dict[str, Any] = {"passenger": "Ada Lovelace"}
BAD: dict[str, Any] = {"row": 4}


async def append(store: EventStore, *seats: tuple[str, dict[str, Any]]) -> None:
    for aggregate_id, data in seats:
        await store.append_event(draft(aggregate_id, TYPE, data=data))


async def test_a_consumer_of_a_newer_release_parks_its_aggregate(
    store: EventStore, kafka: EventBusConfig
) -> None:
    release(1)
    await append(store, ("seat-1", GOOD), ("seat-2", BAD), ("seat-2", GOOD), ("seat-3", GOOD))
    async with EventBus(kafka, store=store):
        await relayed(store)
    release(3)
    handler = InMemoryHandler()
    async with EventBus(kafka, store=store) as bus:
        await bus.subscribe([TYPE], handler, consumer_group="seats")
        await until(lambda: {event.aggregate_id for event in handler.events} >= {"seat-1", "seat-3"})
        await until(lambda: parked(store, "seats", 2))
    first, second = await dead_letters(store.storage, "seats")
    assert (first["status"], first["event"]["event_version"], first["event"]["data"]) == ("failed", 1, BAD)
    assert "@upcast(1) failed" in first["error"]
    assert (second["status"], second["event"]["event_version"]) == ("waiting", 2)
    assert {event.aggregate_id for event in handler.events} == {"seat-1", "seat-3"}


async def test_a_relay_that_cannot_read_it_parks_its_aggregate(
    store: EventStore, kafka: EventBusConfig
) -> None:
    release(1)
    await append(store, ("seat-1", GOOD), ("seat-2", BAD), ("seat-2", GOOD), ("seat-3", GOOD))
    release(3)
    handler = InMemoryHandler()
    async with EventBus(kafka, store=store) as bus:
        await bus.subscribe([TYPE], handler, consumer_group="seats")
        await relayed(store)
        await until(lambda: {event.aggregate_id for event in handler.events} >= {"seat-1", "seat-3"})
    letters = await dead_letters(store.storage, RELAY)
    assert [(row["status"], row["event"]["event_version"]) for row in letters] == [
        ("failed", 1),
        ("waiting", 2),
    ]
    assert {event.aggregate_id for event in handler.events} == {"seat-1", "seat-3"}


async def parked(store: EventStore, group: str, count: int) -> bool:
    return len(await dead_letters(store.storage, group)) == count
