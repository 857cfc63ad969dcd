"""Aggregates do not wait for each other, outages are waited out, and what is in hand survives a restart."""

from __future__ import annotations

import asyncio

import pytest

from eventsourcing import BaseEvent, EventBus, EventBusConfig, EventStore, UnavailableError
from eventsourcing import flow as flows
from eventsourcing.breaker import THRESHOLD, breaker_states
from eventsourcing.consumer import checkpoint_key
from eventsourcing.dead_letters import dead_letters
from eventsourcing.errors import BusyError
from eventsourcing.handlers import EventHandler
from eventsourcing.storage.base import CHECKPOINTS
from eventsourcing.testing import InMemoryHandler
from tests.conformance.test_bus import (
    Transported,
    checkpointed,
    over_the_store,
    settled,
    transported,
    user,
    versions,
)
from tests.waiting import until

__all__ = ["transported"]

QUICK = {"retry_attempts": 2, "retry_delay": 0.001, "outage_pause": 0.2}


class Held(EventHandler):
    """Keeps the events of one aggregate waiting until the gate opens."""

    def __init__(self, aggregate_id: str) -> None:
        self.gate = asyncio.Event()
        self.events: list[BaseEvent] = []
        self._aggregate_id = aggregate_id

    def can_handle(self, event_type: str) -> bool:  # noqa: ARG002 - takes everything
        return True

    async def handle(self, event: BaseEvent) -> None:
        if event.aggregate_id == self._aggregate_id:
            await self.gate.wait()
        self.events.append(event)


async def checkpoint(store: EventStore, group: str = "all") -> dict[str, object]:
    async with store.storage.transaction() as transaction:
        found = await transaction.get(CHECKPOINTS, checkpoint_key(group))
    return dict(found or {})


async def reached(store: EventStore, position: int) -> None:
    """Wait until the checkpoint of the group stands at a position."""

    async def there() -> bool:
        return (await checkpoint(store)).get("position") == position

    await until(there)


async def parked(store: EventStore) -> bool:
    return await dead_letters(store.storage, "all") != []


@over_the_store
async def test_a_slow_aggregate_holds_nobody_back_across_slices(transported: Transported) -> None:
    handler = Held("user-0")
    bus = transported.bus()
    await bus.subscribe([], handler, consumer_group="all")
    async with bus:
        for _ in range(6):
            await bus.publish_batch([user(n) for n in range(300)])
        await until(lambda: len(handler.events) == 6 * 299)
        handler.gate.set()
        await until(lambda: len(handler.events) == 6 * 300)

    assert versions(handler.events) == {f"user-{n}": [1, 2, 3, 4, 5, 6] for n in range(300)}


@checkpointed
async def test_a_checkpoint_goes_past_a_slow_aggregate_and_names_it(transported: Transported) -> None:
    handler = Held("user-0")
    bus = transported.bus()
    await bus.subscribe([], handler, consumer_group="all")
    async with bus:
        for _ in range(6):  # several slices
            await bus.publish_batch([user(n) for n in range(300)])
        await until(lambda: len(handler.events) == 6 * 299)
        head = await transported.store.horizon()

        await reached(transported.store, head)
        assert (await checkpoint(transported.store))["held"] == {"user-0": 1}
        handler.gate.set()
        await until(lambda: len(handler.events) == 6 * 300)

    assert (await checkpoint(transported.store))["held"] == {}
    assert versions(handler.events) == {f"user-{n}": [1, 2, 3, 4, 5, 6] for n in range(300)}


async def test_aggregates_of_one_publish_do_not_wait_for_a_retrying_one(transported: Transported) -> None:
    handler = Held("user-0")
    bus = transported.bus()
    await bus.subscribe([], handler, consumer_group="all")
    async with bus:
        publishing = asyncio.create_task(bus.publish_batch([user(n) for n in range(100)]))
        await until(lambda: len(handler.events) == 99)
        handler.gate.set()
        await until(lambda: len(handler.events) == 100)
        await publishing


@checkpointed
async def test_what_was_in_hand_is_taken_up_after_a_restart_and_nothing_else(
    transported: Transported,
) -> None:
    first, second = Held("user-0"), InMemoryHandler()
    bus = transported.bus()
    await bus.subscribe([], first, consumer_group="all")
    async with bus:
        for _ in range(3):
            await bus.publish_batch([user(n) for n in range(50)])
        await until(lambda: len(first.events) == 3 * 49)
    bus = transported.bus()
    await bus.subscribe([], second, consumer_group="all")
    async with bus:
        await until(lambda: len(second.events) == 3)
        assert await settled(second) == 3

    assert versions(second.events) == {"user-0": [1, 2, 3]}


@checkpointed
async def test_too_much_in_hand_pauses_the_reading_and_loses_nothing(
    transported: Transported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "IN_HAND", 20)
    handler = Held("user-0")
    bus = transported.bus()
    await bus.subscribe([], handler, consumer_group="all")
    async with bus:
        await bus.publish_batch([user(n % 2) for n in range(200)])
        await until(lambda: len(handler.events) >= 10)
        await asyncio.sleep(0.3)
        assert len(handler.events) < 30, "no more than 20 events are ever in hand"
        handler.gate.set()
        await until(lambda: len(handler.events) == 200)

    assert versions(handler.events) == {"user-0": list(range(1, 101)), "user-1": list(range(1, 101))}


@over_the_store
async def test_an_outage_opens_the_circuit_and_the_flow_resumes_by_itself(transported: Transported) -> None:
    away = True
    handler = InMemoryHandler(fails=lambda _: ConnectionError("away") if away else None)
    bus = EventBus(transported.config.model_copy(update=QUICK), store=transported.store)
    await bus.subscribe([], handler, consumer_group="fragile")
    async with bus:
        await bus.publish_batch([user(n) for n in range(40)])
        await until(lambda: breaker_states().get("fragile") == "open")
        calls = handler.calls
        await asyncio.sleep(0.15)
        assert handler.calls == calls, "nobody calls while the circuit is open"
        await until(lambda: handler.calls > calls)
        assert handler.calls - calls < THRESHOLD, "one trial at a time"
        away = False
        await until(lambda: len(handler.events) == 40)
        await until(lambda: breaker_states().get("fragile") == "closed")

    assert await dead_letters(transported.store.storage, "fragile") == []
    assert versions(handler.events) == {f"user-{n}": [1] for n in range(40)}


async def test_an_outage_reaches_whoever_publishes_to_memory() -> None:
    bus = EventBus(EventBusConfig.model_validate(QUICK), use_memory=True)
    await bus.subscribe([], InMemoryHandler(fails=lambda _: ConnectionError("away")))
    with pytest.raises(UnavailableError, match="away"):
        await bus.publish(user(1))


async def test_a_handler_that_does_not_come_back_is_given_up(transported: Transported) -> None:
    config = transported.config.model_copy(
        update={"retry_attempts": 1, "retry_delay": 0.001, "handler_timeout": 0.05}
    )
    handler = Held("user-0")
    bus = EventBus(config, store=transported.store, use_memory=transported.use_memory)
    await bus.subscribe([], handler, consumer_group="all")
    async with bus:
        await bus.publish_batch([user(0), user(1)])
        await until(lambda: parked(transported.store))

    found = await dead_letters(transported.store.storage, "all")
    assert found[0]["attempts"] == 2
    assert found[0]["error_class"].endswith("HandlerTimeoutError")


@checkpointed
async def test_a_process_that_lost_its_lease_cannot_move_the_checkpoint(
    transported: Transported, caplog: pytest.LogCaptureFixture
) -> None:
    handler = InMemoryHandler()
    bus = transported.bus()
    await bus.subscribe([], handler, consumer_group="all")
    async with bus:
        await bus.publish(user(1))
        await until(lambda: len(handler.events) == 1)
        await reached(transported.store, 1)
        async with transported.store.storage.transaction() as transaction:
            stolen = {"position": 1, "held": {}, "owner": "another process"}
            await transaction.put(CHECKPOINTS, checkpoint_key("all"), stolen)
        await bus.publish(user(2))
        await until(lambda: any(str(BusyError("another process leads")) in r.message for r in caplog.records))
        await reached(transported.store, 2)

    assert (await checkpoint(transported.store))["owner"] != "another process"
    assert {event.aggregate_id for event in handler.events} == {"user-1", "user-2"}
