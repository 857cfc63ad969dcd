"""What the transport does when something is out of the ordinary: refused, poisoned, unreadable, missing."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from confluent_kafka import Consumer, Message, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from eventsourcing import ConfigurationError, EventBus, EventBusConfig, EventStore
from eventsourcing.dead_letters import dead_letters
from eventsourcing.relay import RELAY
from eventsourcing.storage.base import CHECKPOINTS
from eventsourcing.testing import InMemoryHandler
from eventsourcing.transport import kafka_consumer
from eventsourcing.transport.kafka_audit import audit
from eventsourcing.transport.kafka_message import headers_of
from eventsourcing.transport.kafka_offsets import Offsets
from tests.factories import draft
from tests.integration.kafka.lab import relayed
from tests.waiting import until

QUICK: dict[str, Any] = {"retry_attempts": 1, "retry_delay": 0.001}


def changed(config: EventBusConfig, **changes: Any) -> EventBusConfig:
    options = config.kafka_options | changes.pop("kafka_options", {})
    return config.model_copy(update={"kafka_options": options, **changes})


def make_topic(config: EventBusConfig, name: str, partitions: int, **settings: str) -> str:
    topic = f"{config.topic_prefix}.{name}"
    admin = AdminClient({"bootstrap.servers": config.kafka_bootstrap_servers or ""})
    made = admin.create_topics([NewTopic(topic, partitions, config=settings)])
    made[topic].result(timeout=10)
    return topic


def messages(config: EventBusConfig, topic: str, count: int) -> list[Message]:
    """The first messages of a topic, by a plain client."""
    client = Consumer(
        {
            "bootstrap.servers": config.kafka_bootstrap_servers or "",
            "group.id": "looks",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    client.subscribe([topic])
    found: list[Message] = []
    for _ in range(100):
        found += [message for message in client.consume(100, 0.2) if message.error() is None]
        if len(found) >= count:
            break
    client.close()
    return found


@pytest.mark.parametrize("by", ["the client", "the broker"])
async def test_an_event_that_is_refused_for_good_is_parked_with_its_aggregate_and_others_flow(
    store: EventStore, kafka: EventBusConfig, by: str
) -> None:
    if by == "the broker":
        make_topic(kafka, "order.placed", 2, **{"max.message.bytes": "20000"})
    else:
        kafka = changed(kafka, kafka_options={"message.max.bytes": 20_000})
    await store.append_events([draft("order-1"), draft("order-2")])
    noise = random.Random(1).randbytes(60_000).hex()  # nothing to compress
    await store.append_event(draft("order-1", data={"noise": noise}))
    async with EventBus(kafka, store=store):
        await relayed(store)
        await store.append_events([draft("order-1"), draft("order-2"), draft("order-1", "order.paid")])
        await relayed(store)

    letters = await dead_letters(store.storage, RELAY)
    assert [(one["status"], one["event"]["event_version"]) for one in letters] == [
        ("failed", 2),
        ("waiting", 3),
        ("waiting", 4),
    ]
    found = await audit(store.storage, kafka)
    assert sorted(position for topic in found.topics for position in topic.missing_positions) == [
        letter["event"]["position"] for letter in letters
    ]
    assert sum(topic.present for topic in found.topics) == 3


async def test_a_poisoned_event_and_what_is_behind_it_stand_in_table_and_topic(
    store: EventStore, kafka: EventBusConfig
) -> None:
    handler = InMemoryHandler(fails=lambda event: ValueError("poison") if event.data.get("bad") else None)
    bus = EventBus(changed(kafka, **QUICK), store=store)
    await bus.subscribe(["order.placed"], handler, consumer_group="readers")
    stored = await store.append_events(
        [draft("order-1", data={"bad": True}), draft("order-1"), draft("order-2")]
    )
    async with bus:
        await until(lambda: len(handler.events) == 1)
        await until(lambda: has_letters(store, "readers", 2))
        stored.append(await store.append_event(draft("order-1", "order.placed")))
        await until(lambda: has_letters(store, "readers", 3))
        found = await asyncio.to_thread(messages, kafka, f"{kafka.topic_prefix}.dlq.readers", 3)

    assert [message.key() for message in found] == [b"order-1"] * 3
    first = dict(headers_of(found[0]))
    assert first["ce_id"] == str(stored[0].event_id).encode()
    assert first["dlq-original-topic"] == f"{kafka.topic_prefix}.order.placed".encode()
    assert first["dlq-consumer-group"] == b"readers"
    assert first["dlq-reason"] == b"retries-exhausted"
    assert first["dlq-exception-class"] == b"ValueError"
    assert first["dlq-exception-message"] == b"poison"
    assert first["dlq-attempts"] == b"2"
    assert [dict(headers_of(message))["dlq-reason"] for message in found[1:]] == [b"parked-behind"] * 2
    assert [event.aggregate_id for event in handler.events] == ["order-2"]


async def has_letters(store: EventStore, group: str, count: int) -> bool:
    return len(await dead_letters(store.storage, group)) == count


async def test_without_the_topic_of_dead_letters_the_table_stays(
    store: EventStore, kafka: EventBusConfig
) -> None:
    handler = InMemoryHandler(fails=lambda _: ValueError("poison"))
    bus = EventBus(changed(kafka, **QUICK, enable_dead_letter_queue=False), store=store)
    await bus.subscribe(["order.placed"], handler, consumer_group="readers")
    await store.append_event(draft())
    async with bus:
        await until(lambda: has_letters(store, "readers", 1))

    admin = AdminClient({"bootstrap.servers": kafka.kafka_bootstrap_servers or ""})
    assert f"{kafka.topic_prefix}.dlq.readers" not in admin.list_topics(timeout=10).topics


async def test_what_is_no_event_is_a_dead_letter_and_holds_nothing_up(
    store: EventStore, kafka: EventBusConfig
) -> None:
    topic = make_topic(kafka, "order.placed", 2)
    stranger = Producer({"bootstrap.servers": kafka.kafka_bootstrap_servers or ""})
    stranger.produce(topic, b"\xff\x00", b"order-1", headers={"who": b"knows"})
    stranger.flush(10)
    handler = InMemoryHandler()
    bus = EventBus(kafka, store=store)
    await bus.subscribe(["order.placed"], handler, consumer_group="readers")
    await store.append_event(draft("order-1"))
    async with bus:
        await until(lambda: len(handler.events) == 1)
        await until(lambda: has_letters(store, "readers", 1))
        dead = await asyncio.to_thread(messages, kafka, f"{kafka.topic_prefix}.dlq.readers", 1)

    (letter,) = await dead_letters(store.storage, "readers")
    assert letter["event"]["aggregate_type"] == "kafka-message"
    assert letter["event"]["data"]["headers"] == {"who": "knows"}
    assert (dead[0].key(), dead[0].value()) == (b"order-1", b"\xff\x00")
    assert dict(headers_of(dead[0]))["dlq-reason"] == b"deserialization"


async def test_a_gap_that_does_not_close_is_filled_from_the_store(
    store: EventStore, kafka: EventBusConfig
) -> None:
    """The first two events never reach Kafka: the relay is made to begin behind them."""
    stored = await store.append_events([draft("order-1"), draft("order-1", "order.paid")])
    async with store.storage.transaction() as transaction:
        await transaction.put(CHECKPOINTS, "relay/relay", {"position": stored[-1].position})
    handler = InMemoryHandler()
    bus = EventBus(changed(kafka, gap_timeout=0.5), store=store)
    await bus.subscribe(["order.placed", "order.sent"], handler, consumer_group="readers")
    async with bus:
        await store.append_event(draft("order-1", "order.sent"))
        await until(lambda: len(handler.events) == 2)

    assert [event.event_version for event in handler.events] == [1, 3]


async def test_a_group_that_begins_now_skips_the_past_of_its_aggregates(
    store: EventStore, kafka: EventBusConfig
) -> None:
    await store.append_events([draft("order-1"), draft("order-1", "order.paid"), draft("order-2")])
    handler = InMemoryHandler()
    async with EventBus(kafka, store=store):
        await relayed(store)
    bus = EventBus(kafka, store=store)
    await bus.subscribe(["order.placed", "order.paid"], handler, consumer_group="readers", start="now")
    async with bus:
        await asyncio.sleep(2)
        await store.append_events([draft("order-1"), draft("order-3")])
        await until(lambda: len(handler.events) == 2)

    assert sorted((event.aggregate_id, event.event_version) for event in handler.events) == [
        ("order-1", 3),
        ("order-3", 1),
    ]


async def test_a_group_goes_on_over_kafka_where_it_was_over_the_store(
    store: EventStore, kafka: EventBusConfig
) -> None:
    handlers = []
    for config in (EventBusConfig(), kafka):
        handlers.append(InMemoryHandler())
        bus = EventBus(config, store=store)
        await bus.subscribe(["order.placed"], handlers[-1], consumer_group="readers")
        async with bus:
            await store.append_events([draft("order-1"), draft("order-2")])
            await until(lambda: len(handlers[-1].events) == 2)

    assert sorted(event.event_version for event in handlers[1].events) == [2, 2]


async def test_a_slow_handler_has_partitions_paused_and_gets_everything(
    store: EventStore, kafka: EventBusConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_consumer, "MOST_IN_HAND", 40)
    monkeypatch.setattr(kafka_consumer, "LEAST_OF_A_PARTITION", 1)
    paused: list[Any] = []
    pressure = Offsets.pressure

    def watched(self: Offsets) -> Any:
        answer = pressure(self)
        paused.extend(answer[0])
        return answer

    monkeypatch.setattr(Offsets, "pressure", watched)

    class Slow(InMemoryHandler):
        async def handle(self, event: Any) -> None:
            await asyncio.sleep(0.002)
            await super().handle(event)

    handler = Slow()
    bus = EventBus(kafka, store=store)
    await bus.subscribe(["order.placed", "order.paid"], handler, consumer_group="readers")
    kinds = ["order.placed", "order.paid"]
    await store.append_events([draft(f"order-{number % 7}", kinds[number % 2]) for number in range(700)])
    async with bus:
        await until(lambda: len(handler.events) == 700)

    assert paused
    versions = [event.event_version for event in handler.events if event.aggregate_id == "order-3"]
    assert versions == list(range(1, 101))


async def test_a_relay_that_stands_by_takes_over(store: EventStore, kafka: EventBusConfig) -> None:
    first, second = EventBus(kafka, store=store), EventBus(kafka, store=store)
    await first.start()
    await store.append_event(draft())
    await relayed(store)
    await second.start()
    await first.stop()
    await store.append_event(draft())
    await relayed(store)
    await second.stop()

    found = await audit(store.storage, kafka)
    assert (found.complete, [topic.doubled for topic in found.topics if topic.stored]) == (True, [0])


async def test_a_lost_message_is_found_by_the_audit(store: EventStore, kafka: EventBusConfig) -> None:
    """The planted faults: one event is skipped, one published twice, one is of no store."""
    stored = await store.append_events([draft(f"order-{number}") for number in range(5)])
    async with store.storage.transaction() as transaction:
        await transaction.put(CHECKPOINTS, "relay/relay", {"position": stored[0].position})
    async with EventBus(kafka, store=store):
        await relayed(store)
    stranger = Producer({"bootstrap.servers": kafka.kafka_bootstrap_servers or ""})
    for position in (stored[2].position, 10_000):
        stranger.produce(f"{kafka.topic_prefix}.order.placed", b"{}", headers={"es-position": str(position)})
    stranger.flush(10)

    found = await audit(store.storage, kafka, to=20_000)

    (topic,) = [topic for topic in found.topics if topic.stored]
    assert not found.complete
    assert (topic.stored, topic.present, topic.missing, topic.doubled, topic.foreign) == (5, 4, 1, 1, 1)
    assert topic.missing_positions == [stored[0].position]
    assert topic.doubled_positions == [stored[2].position]
    assert topic.foreign_positions == [10_000]


async def test_kafka_without_a_store_delivers_as_given(kafka: EventBusConfig) -> None:
    grouped, private = InMemoryHandler(), InMemoryHandler()
    bus = EventBus(kafka)
    await bus.subscribe(["order.placed"], grouped, consumer_group="readers")
    await bus.subscribe(["order.placed"], private)
    async with bus:
        await bus.publish_batch([draft("order-1", data={"number": number}) for number in range(3)])
        await until(lambda: len(grouped.events) == len(private.events) == 3)

    for handler in (grouped, private):
        assert [event.data["number"] for event in handler.events] == [0, 1, 2]
        assert [event.event_version for event in handler.events] == [0, 0, 0]


async def test_topics_that_are_wrong_are_refused_at_start(store: EventStore, kafka: EventBusConfig) -> None:
    verifying = changed(kafka, kafka_provisioning="verify")
    with pytest.raises(ConfigurationError, match=r"Kafka has no topic .*; make it with 2 partitions"):
        await EventBus(verifying, store=store).start()

    make_topic(kafka, "user.migrated", 3)
    with pytest.raises(ConfigurationError, match=r"user.migrated has 3 partitions, .* is 2; all topics"):
        await EventBus(kafka, store=store).start()


@pytest.mark.parametrize("provisioning", ["create", "verify", "none"])
async def test_topics_are_made_checked_or_trusted(
    store: EventStore, kafka: EventBusConfig, provisioning: Any
) -> None:
    if provisioning != "create":
        async with EventBus(kafka, store=store):
            await store.append_event(draft())
            await relayed(store)
    handler = InMemoryHandler()
    bus = EventBus(
        changed(kafka, kafka_provisioning=provisioning, enable_dead_letter_queue=False), store=store
    )
    await bus.subscribe(["order.placed"], handler, consumer_group="readers")
    async with bus:
        await store.append_event(draft())
        await until(lambda: len(handler.events) >= 1)


async def test_a_group_that_no_topic_can_be_named_after_is_refused(
    store: EventStore, kafka: EventBusConfig
) -> None:
    with pytest.raises(ConfigurationError, match="consumer group 'the readers'"):
        await EventBus(kafka, store=store).subscribe([], InMemoryHandler(), consumer_group="the readers")


async def test_a_slow_aggregate_holds_nobody_back_and_is_taken_up_after_a_restart(
    store: EventStore, kafka: EventBusConfig
) -> None:
    class Held(InMemoryHandler):
        gate = asyncio.Event()

        async def handle(self, event: Any) -> None:
            if event.aggregate_id == "order-0":
                await self.gate.wait()
            await super().handle(event)

    first, second = Held(), InMemoryHandler()
    bus = EventBus(kafka, store=store)
    await bus.subscribe([], first, consumer_group="readers")
    await store.append_events([draft(f"order-{number % 100}") for number in range(3000)])
    async with bus:
        await until(lambda: len(first.events) == 30 * 99)
    bus = EventBus(kafka, store=store)
    await bus.subscribe([], second, consumer_group="readers")
    async with bus:
        await until(lambda: len(second.events) == 30)
        await asyncio.sleep(1)

    assert [(event.aggregate_id, event.event_version) for event in second.events] == [
        ("order-0", version) for version in range(1, 31)
    ]
