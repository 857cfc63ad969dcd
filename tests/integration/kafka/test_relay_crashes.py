"""`kill -9` of the relay between publishing and its checkpoint, again and again, and what comes of it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import defaultdict

import pytest

from eventsourcing import EventBus, EventBusConfig, EventStore
from eventsourcing.fold_handler import FoldHandler
from eventsourcing.testing import InMemoryHandler
from eventsourcing.transport.kafka_audit import audit
from tests.factories import draft
from tests.integration.kafka.lab import Versions, all_applied, relayed
from tests.waiting import until

KILLED_RELAY = """
import asyncio, json, os, signal, sys
from eventsourcing import EventBus, EventBusConfig, EventStore
from eventsourcing import relay
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.storage.postgres_states import PostgresTransaction

put = PostgresTransaction.put
left = int(sys.argv[3])

async def put_or_die(self, table, key, value):
    global left
    if key == "relay/relay":
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)  # published and acknowledged, the checkpoint not moved
    await put(self, table, key, value)

PostgresTransaction.put = put_or_die
relay.BATCH = 50

async def main():
    async with EventStore(storage=PostgresStorage(sys.argv[1])) as store:
        async with EventBus(EventBusConfig(**json.loads(sys.argv[2])), store=store):
            await asyncio.sleep(60)

asyncio.run(main())
"""

AGGREGATES, TYPES = 40, ["order.placed", "order.paid", "order.sent", "order.returned"]


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.chaos)])
@pytest.mark.timeout(300)
async def test_a_relay_killed_before_its_checkpoint_loses_nothing_and_doubles_no_effect(
    store: EventStore, store_url: str, kafka: EventBusConfig, kills: int
) -> None:
    deaths = [await life_and_death(store, store_url, kafka, number) for number in range(kills)]
    handler, fold = InMemoryHandler(), FoldHandler(Versions(), store.storage)
    bus = EventBus(kafka, store=store)
    await bus.subscribe(TYPES, handler, consumer_group="plain")
    await bus.subscribe(TYPES, fold, consumer_group="fold")
    total = kills * 200
    async with bus:
        await relayed(store)
        await until(lambda: len(handler.events) >= total)
        await until(lambda: all_applied(fold, AGGREGATES, total))
        await asyncio.sleep(1)  # what is repeated would come now

    assert deaths == [-9] * kills
    found = await audit(store.storage, kafka)
    assert sum(topic.present for topic in found.topics) == total
    assert found.complete
    assert sum(topic.doubled for topic in found.topics) > 0, "no kill fell between publishing and checkpoint"
    versions = defaultdict(list)
    for event in handler.events:
        versions[event.aggregate_id].append(event.event_version)
    expected = list(range(1, total // AGGREGATES + 1))
    assert list(versions.values()) == [expected] * AGGREGATES
    for number in range(AGGREGATES):
        state = await fold.state_of(f"order-{number}")
        assert state == {"versions": expected}


async def life_and_death(store: EventStore, url: str, config: EventBusConfig, number: int) -> int:
    """Append, and let a relay publish until it is killed; its exit code."""
    events = [
        draft(f"order-{place % AGGREGATES}", TYPES[(place // AGGREGATES + number) % 4])
        for place in range(200)
    ]
    await store.append_events(events)
    command = [sys.executable, "-c", KILLED_RELAY, url, json.dumps(config.model_dump()), str(number % 3)]
    process = await asyncio.to_thread(
        subprocess.run, command, stderr=subprocess.DEVNULL, timeout=60, check=False
    )
    return process.returncode
