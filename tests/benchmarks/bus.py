"""The bus: the relay against a bare librdkafka loop, latency and throughput over the store and Kafka."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

from confluent_kafka import Producer

from eventsourcing import EventBus, EventBusConfig, EventStore, UserMigratedEvent
from eventsourcing.events import BaseEvent
from eventsourcing.fold_handler import FoldHandler
from eventsourcing.folds import USER_MIGRATIONS
from eventsourcing.handlers import EventHandler
from eventsourcing.relay import Relay
from eventsourcing.storage.base import CHECKPOINTS
from eventsourcing.transport.kafka import KafkaTransport
from eventsourcing.transport.kafka_message import encode_message
from eventsourcing.transport.kafka_options import producer_options
from tests.benchmarks.measure import Report, bench_server, bench_store, compared, conditions, percentiles
from tests.conftest import own_broker
from tests.integration.kafka.lab import relayed
from tests.waiting import until

EVENTS = 30_000
PACED, RATE = 1_000, 200

PREFIX = "bench"


def draft(number: int) -> BaseEvent:
    """A user event of about 350 bytes; a tenth of the streams has more than one."""
    row = {"id": number, "username": "ann", "note": "n" * 40, "enabled": True, "used_traffic": 1234567890}
    return UserMigratedEvent(
        user_id=f"user-{uuid4().hex if number % 10 else number % 1000}",
        username="ann",
        source_data=row,
        target_data=row,
    )


async def measure(report: Report) -> None:
    """Every figure of the bus, on a store and a broker of its own."""
    with bench_server() as server, own_broker() as broker:
        async with bench_store(server, "bus", pool_size=16) as (store, storage):
            report.note(await conditions(storage))
            for start in range(0, EVENTS, 1000):
                await store.append_events([draft(start + number) for number in range(1000)])
            await _measure(report, store, broker.address)


async def _measure(report: Report, store: EventStore, address: str) -> None:
    report.add(
        await compared(
            "relay / bare librdkafka loop",
            lambda: relay(store, config(address)),
            lambda: bare_loop(store, config(address)),
            target=0.8,
        )
    )
    kafka = config(address)
    await relay(store, kafka)  # the topics are full when the groups come
    over = {"store": EventBusConfig(), "Kafka": kafka}
    for name, bus_config in over.items():
        report.note(f"handler, over {name}: {await handled(store, bus_config, Noted()):,.0f} events/s")
    fold = FoldHandler(USER_MIGRATIONS, store.storage)
    report.note(f"durable fold, over Kafka: {await folded(store, kafka, fold):,.0f} events/s")
    for name, bus_config in over.items():
        took = await latency(store, bus_config)
        report.note(f"commit to handler, over {name}, at {RATE} events/s: {percentiles(took)}")


async def count(store: EventStore) -> int:
    """How many events are stored."""
    total: int = (await store.get_event_stats())["total_events"]
    return total


def config(address: str) -> EventBusConfig:
    return EventBusConfig(kafka_bootstrap_servers=address, topic_prefix=f"{PREFIX}-{uuid4().hex[:8]}")


async def bare_loop(store: EventStore, bus: EventBusConfig) -> float:
    """The same messages, made before the clock starts, through librdkafka alone."""
    messages = [encode_message(bus.topic_prefix, event, {}) async for event in store.get_all_events()]
    transport = KafkaTransport(bus, store.storage)
    await transport.start()
    await transport.stop()

    def produce() -> float:
        producer = Producer(producer_options(bus))
        began = time.perf_counter()
        for one in messages:
            producer.produce(one.topic, one.value, one.key, headers=one.headers, on_delivery=lambda *_: None)
            producer.poll(0)
        producer.flush()
        return len(messages) / (time.perf_counter() - began)

    return await asyncio.to_thread(produce)


async def relay(store: EventStore, bus: EventBusConfig) -> float:
    """Everything stored, until all of it is acknowledged and the checkpoint says so."""
    async with store.storage.transaction() as transaction:
        await transaction.delete(CHECKPOINTS, "relay/relay")
    transport = KafkaTransport(bus, store.storage)
    await transport.start()
    total, began = await count(store), time.perf_counter()
    running = asyncio.create_task(Relay(store.storage, transport).run())
    await relayed(store)
    took = time.perf_counter() - began
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await transport.stop()
    return total / took


class Noted(EventHandler):
    """Notes when it was called for each event."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}
        self.first = 0.0

    def can_handle(self, event_type: str) -> bool:  # noqa: ARG002 - the subscription names the types
        return True

    async def handle(self, event: BaseEvent) -> None:
        self.at[str(event.event_id)] = time.perf_counter()
        self.first = self.first or time.perf_counter()


async def handled(store: EventStore, bus_config: EventBusConfig, handler: Noted) -> float:
    """A new group reads everything; the clock starts with its first event, not with its joining."""
    bus = EventBus(bus_config, store=store)
    await bus.subscribe(["user.migrated"], handler, consumer_group=f"readers-{uuid4().hex[:8]}")
    total = await count(store)
    async with bus:
        await until(lambda: len(handler.at) >= total)
        took = time.perf_counter() - handler.first
    return total / took


async def folded(store: EventStore, bus_config: EventBusConfig, fold: FoldHandler) -> float:
    """A new group of one durable fold reads everything, until its last state is committed."""
    last = [event async for event in store.get_all_events()][-1]
    bus = EventBus(bus_config, store=store)
    await bus.subscribe(["user.migrated"], fold, consumer_group=f"folds-{uuid4().hex[:8]}")
    total, began = await count(store), time.perf_counter()

    async def applied() -> bool:
        return await fold.state_of(last.aggregate_id) is not None

    async with bus:
        await until(applied)
    return total / (time.perf_counter() - began)


async def latency(store: EventStore, bus_config: EventBusConfig) -> list[float]:
    """Seconds from the acknowledged append to the handler's call, at a steady rate."""
    handler, committed = Noted(), dict[str, float]()
    bus = EventBus(bus_config, store=store)
    await bus.subscribe(["user.migrated"], handler, consumer_group=f"late-{uuid4().hex[:8]}", start="now")
    async with bus:
        while not handler.at:  # until it has joined, and skipped the past
            await store.append_event(draft(1))
            await asyncio.sleep(0.2)
        began = time.perf_counter()
        for number in range(PACED):
            event = await store.append_event(draft(number * 10 + 1))
            committed[str(event.event_id)] = time.perf_counter()
            await asyncio.sleep(max(began + number / RATE - time.perf_counter(), 0))
        await until(lambda: handler.at.keys() >= committed.keys())
    return [handler.at[name] - at for name, at in committed.items()]
