"""What every transport keeps: order per aggregate, no loss, bounded retries, parked aggregates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from eventsourcing import (
    EventBus,
    EventBusConfig,
    EventStore,
    MigrationStartedEvent,
    UserMigratedEvent,
)
from eventsourcing.dead_letters import dead_letters
from eventsourcing.events import BaseEvent
from eventsourcing.handlers import NotificationEventHandler
from eventsourcing.storage.base import CHECKPOINTS, Storage
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.testing import InMemoryHandler, InMemoryNotifications, a_migration
from eventsourcing.transport.kafka_delivery import GROUP_CHECKPOINTS
from tests.waiting import until

CONFIG = EventBusConfig(retry_attempts=2, retry_delay=0.001)


@dataclass
class Transported:
    """A store and a way to make buses over it, as many processes would."""

    store: EventStore
    config: EventBusConfig
    use_memory: bool

    def bus(self) -> EventBus:
        return EventBus(self.config, store=self.store, use_memory=self.use_memory)


@pytest.fixture(params=["relay-to-memory", "store-in-memory", "store-on-postgres", "kafka"])
async def transported(request: pytest.FixtureRequest) -> AsyncIterator[Transported]:
    """Every transport that delivers what a store holds."""
    store = (
        EventStore(storage=PostgresStorage(request.getfixturevalue("store_url")))
        if request.param in ("store-on-postgres", "kafka")
        else EventStore(use_memory=True)
    )
    config = CONFIG
    if request.param == "kafka":
        config = config.model_copy(update=request.getfixturevalue("kafka").model_dump(exclude_defaults=True))
    async with store:
        yield Transported(store, config, use_memory=request.param == "relay-to-memory")


over_the_store = pytest.mark.parametrize(
    "transported", ["store-in-memory", "store-on-postgres", "kafka"], indirect=True
)
"""What a relay to memory cannot have: history for new groups, groups over several processes."""


checkpointed = pytest.mark.parametrize("transported", ["store-in-memory", "store-on-postgres"], indirect=True)
"""Transports whose groups follow the store itself, by one checkpoint of positions."""


def user(number: int, name: str = "ann") -> UserMigratedEvent:
    return UserMigratedEvent(user_id=f"user-{number}", username=name, source_data={}, target_data={})


async def settled(handler: InMemoryHandler) -> int:
    """Wait until the handler is not called any more; how often it was."""
    while True:
        before = handler.calls
        await asyncio.sleep(0.3)
        if handler.calls == before:
            return before


def versions(events: list[BaseEvent]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for event in events:
        found.setdefault(event.aggregate_id, []).append(event.event_version)
    return found


async def test_every_event_arrives_once_in_version_order_of_its_aggregate(transported: Transported) -> None:
    handler = InMemoryHandler()
    bus = transported.bus()
    await bus.subscribe([], handler, consumer_group="all")
    async with bus:
        for round_ in range(5):
            await bus.publish_batch([user(number, f"name{round_}") for number in range(10)])
        await until(lambda: len(handler.events) == 50)
        assert await settled(handler) == 50

    assert versions(handler.events) == {f"user-{number}": [1, 2, 3, 4, 5] for number in range(10)}


async def test_an_event_appended_and_then_published_arrives_once(transported: Transported) -> None:
    handler = InMemoryHandler()
    bus = transported.bus()
    await bus.subscribe([], handler, consumer_group="all")
    async with bus:
        event = user(1)
        recorded = await transported.store.append_event(event)
        await bus.publish(event)
        await bus.publish(recorded)
        await until(lambda: handler.calls > 0)
        assert await settled(handler) == 1


async def test_only_the_types_subscribed_to_arrive(transported: Transported) -> None:
    handler = InMemoryHandler()
    bus = transported.bus()
    await bus.subscribe(["migration.started", "migration.completed"], handler, consumer_group="ends")
    async with bus:
        await bus.publish_batch(a_migration())
        await until(lambda: len(handler.events) == 2)

    assert [event.event_type for event in handler.events] == ["migration.started", "migration.completed"]


async def test_a_handler_that_fails_is_called_again_and_the_event_is_not_lost(
    transported: Transported,
) -> None:
    failures = iter([RuntimeError("first"), RuntimeError("second")])
    handler = InMemoryHandler(fails=lambda _: next(failures, None))
    bus = transported.bus()
    await bus.subscribe([], handler, consumer_group="all")
    async with bus:
        await bus.publish(user(1))
        await until(lambda: len(handler.events) == 1)

    assert handler.calls == 3
    assert await dead_letters(transported.store.storage, "all") == []


async def test_a_poisoned_event_parks_its_aggregate_and_no_other(transported: Transported) -> None:
    handler = InMemoryHandler(
        fails=lambda event: ValueError("poison") if event.data["username"] == "poison" else None
    )
    bus = transported.bus()
    await bus.subscribe([], handler, consumer_group="all")
    async with bus:
        await bus.publish_batch([user(1), user(1, "poison"), user(1, "behind"), user(2)])
        await until(lambda: len(handler.events) == 2)
        await until(lambda: are_parked(transported, 2))  # what comes now comes to a parked aggregate
        await bus.publish_batch([user(1, "later"), user(2, "later")])
        await until(lambda: len(handler.events) == 3)
        await until(lambda: are_parked(transported, 3))

    letters = await dead_letters(transported.store.storage, "all")
    assert [(letter["status"], letter["event"]["data"]["username"]) for letter in letters] == [
        ("failed", "poison"),
        ("waiting", "behind"),
        ("waiting", "later"),
    ]
    assert letters[0]["error"] == "ValueError: poison"
    assert letters[0]["attempts"] == 1 + CONFIG.retry_attempts
    assert versions(handler.events) == {"user-1": [1], "user-2": [1, 2]}


async def test_an_outage_parks_nothing_and_delivery_goes_on_after_it(transported: Transported) -> None:
    outage = True
    handler = InMemoryHandler(fails=lambda _: ConnectionError("away") if outage else None)
    bus = transported.bus()
    await bus.subscribe([], handler, consumer_group="all")
    async with bus:
        await bus.publish_batch([user(1), user(2)])
        await until(lambda: handler.calls >= 3)
        outage = False
        await until(lambda: len(handler.events) >= 2)

    assert await dead_letters(transported.store.storage, "all") == []
    assert set(versions(handler.events)) == {"user-1", "user-2"}


async def are_parked(transported: Transported, count: int) -> bool:
    return len(await dead_letters(transported.store.storage, "all")) >= count


@over_the_store
async def test_a_new_group_begins_at_the_first_event_unless_its_handler_acts_outside(
    transported: Transported,
) -> None:
    service = InMemoryNotifications()
    handler = InMemoryHandler()
    bus = transported.bus()
    await transported.store.append_events(a_migration("migration-old"))
    await bus.subscribe([], handler, consumer_group="reader")
    await bus.subscribe([], NotificationEventHandler(service), consumer_group="notifier")
    async with bus:
        await until(lambda: len(handler.events) == 8)
        await asyncio.sleep(0.2)
        await bus.publish_batch(a_migration("migration-new"))
        await until(lambda: len(handler.events) == 16 and len(service.sent) == 1)

    assert "migration-new" in service.sent[0][1]


@over_the_store
async def test_a_subscription_without_a_group_sees_what_comes_from_now_on(transported: Transported) -> None:
    await transported.store.append_event(user(1, "before"))
    handler = InMemoryHandler()
    bus = transported.bus()
    async with bus:
        await bus.subscribe([], handler)
        await bus.publish(user(1, "after"))
        await until(lambda: len(handler.events) == 1)

    assert handler.events[0].data["username"] == "after"


async def test_a_group_goes_on_at_its_checkpoint_after_a_restart(transported: Transported) -> None:
    first, second = InMemoryHandler(), InMemoryHandler()
    for handler, name in ((first, "before"), (second, "after")):
        bus = transported.bus()
        await bus.subscribe([], handler, consumer_group="all")
        async with bus:
            await bus.publish(user(1, name))
            await until(lambda taken=handler: len(taken.events) == 1)
            await asyncio.sleep(0.1)

    assert second.events[0].data["username"] == "after"


async def test_a_lost_checkpoint_is_noticed_as_a_repetition(transported: Transported) -> None:
    """The planted fault: without its checkpoints a group must receive everything again."""
    handler = InMemoryHandler()
    for round_ in (1, 2):
        bus = transported.bus()
        await bus.subscribe([], handler, consumer_group="all")
        async with bus:
            await bus.publish(MigrationStartedEvent(migration_id="m", source_config={}, target_config={}))
            await until(lambda least=round_: handler.calls >= least)
            await settled(handler)
        await lose_checkpoints(transported.store.storage)

    assert len(handler.events) > len({event.event_id for event in handler.events})


async def lose_checkpoints(storage: Storage) -> None:
    async with storage.transaction() as transaction:
        for table in (CHECKPOINTS, GROUP_CHECKPOINTS):
            for key, _ in await transaction.scan(table):
                await transaction.delete(table, key)


@over_the_store
async def test_two_processes_of_one_group_share_the_work_without_doubling_it(
    transported: Transported,
) -> None:
    handlers = [InMemoryHandler(), InMemoryHandler()]
    buses = [transported.bus(), transported.bus()]
    for bus, handler in zip(buses, handlers, strict=True):
        await bus.subscribe([], handler, consumer_group="all")
        await bus.start()
    await transported.store.append_events([user(number) for number in range(100)])
    await until(lambda: sum(len(handler.events) for handler in handlers) >= 100)
    for handler in handlers:
        await settled(handler)
    for bus in buses:
        await bus.stop()

    ids = [event.event_id for handler in handlers for event in handler.events]
    assert len(ids) == len(set(ids)) == 100


async def test_a_bus_without_a_store_delivers_as_given() -> None:
    handler = InMemoryHandler()
    bus = EventBus(CONFIG, use_memory=True)
    await bus.subscribe([], handler)

    await bus.publish_batch([user(1), user(1)])

    assert [event.event_version for event in handler.events] == [0, 0]
