"""One event that no code can read holds up its own aggregate, and nobody else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from eventsourcing import (
    DeadLetterQueue,
    EventBus,
    EventBusConfig,
    EventReplay,
    EventReplayConfig,
    EventStore,
    ParkedSelection,
    UpcastError,
    upcasting,
)
from eventsourcing.consumer import checkpoint_key
from eventsourcing.query import EventQuery
from eventsourcing.storage.base import CHECKPOINTS
from eventsourcing.testing import InMemoryHandler
from eventsourcing.unreadable import Batch, read_past_faults
from tests.factories import draft
from tests.seats import TYPE, own_registry, release
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("own_registry")
__all__ = ["own_registry"]

OLD = {"passenger": "Ada Lovelace"}
QUICK = EventBusConfig(retry_attempts=1, retry_delay=0)


@pytest.fixture
async def spoilt(store: EventStore) -> EventStore:
    """A store in which one event of `seat-2` cannot be upcast, between others."""
    release(1)
    seats = [("seat-1", OLD), ("seat-2", OLD), ("seat-2", {"row": 4}), ("seat-3", OLD), ("seat-2", OLD)]
    for aggregate_id, data in seats:
        await store.append_event(draft(aggregate_id, TYPE, data=data))
    await store.append_event(draft("order-1"))
    release(3)
    return store


def seen(handler: InMemoryHandler) -> set[tuple[str, int]]:
    return {(event.aggregate_id, event.event_version) for event in handler.events}


@pytest.mark.parametrize("batch_size", [1, 2, 100])
@pytest.mark.parametrize("limit", [None, 2, 3, 4])
async def test_reading_past_it_gives_everything_once(
    spoilt: EventStore, batch_size: int, limit: int | None
) -> None:
    query = EventQuery(limit=limit)
    batches = [batch async for batch in read_past_faults(spoilt.storage, query, batch_size=batch_size)]
    positions = [event.position for batch in batches for event in batch.events]
    faults: dict[int, UpcastError] = {}
    for batch in batches:
        faults |= batch.faults
    every = [1, 2, 3, 4, 5, 6][:limit]
    assert positions == every
    assert list(faults) == [3][: len(every) // 3]
    for batch in batches:
        assert all(event.data == {"row": 4} for event in batch.events if event.position in faults)
    stream = read_past_faults(spoilt.storage, EventQuery(aggregate_id="seat-2"), batch_size=batch_size)
    assert [event.event_version async for batch in stream for event in batch.events] == [1, 2, 3]


async def test_a_consumer_group_parks_its_aggregate_and_flows_on(spoilt: EventStore) -> None:
    handler = InMemoryHandler()
    async with EventBus(QUICK, store=spoilt) as bus:
        await bus.subscribe([], handler, consumer_group="seats")
        await until(lambda: came(handler, {("seat-1", 1), ("seat-2", 1), ("seat-3", 1), ("order-1", 1)}))
        await spoilt.append_event(draft("seat-1", "order.placed"))
        await until(lambda: came(handler, {("seat-1", 2)}))
        await until(lambda: reached(spoilt, 7))
    queue = DeadLetterQueue(spoilt, QUICK)
    letters = await queue.letters("seats", "seat-2")
    assert [(row["event"]["event_version"], row["status"]) for row in letters] == [
        (2, "failed"),
        (3, "waiting"),
    ]
    assert letters[0]["event"]["data"] == {"row": 4}, "as it is stored"
    assert letters[0]["attempts"] == 0
    assert "@upcast(1) failed with KeyError" in letters[0]["error"]
    assert "Ada" not in str(letters[0]["error"])

    again = InMemoryHandler()
    failed = await queue.redrive(ParkedSelection("seats"), [again], by="me", why="too early")
    assert (failed.failed, failed.letters, again.events) == (1, 0, [])
    mended()
    done = await queue.redrive(ParkedSelection("seats"), [again], by="me", why="the code is mended")
    assert (done.released, done.letters) == (1, 2)
    assert seen(again) == {("seat-2", 2), ("seat-2", 3)}


def mended() -> None:
    """The next release takes a seat without a passenger."""
    lineage = upcasting._lineages[TYPE]

    def lenient(data: dict[str, Any]) -> dict[str, Any]:
        return lineage.steps[0]({"passenger": "nobody known", **data})

    upcasting.register_lineage(upcasting.Lineage(TYPE, (lenient, *lineage.steps[1:])))


async def came(handler: InMemoryHandler, wanted: set[tuple[str, int]]) -> bool:
    return wanted <= seen(handler)


async def reached(store: EventStore, position: int) -> bool:
    async with store.storage.transaction() as transaction:
        row = await transaction.get(CHECKPOINTS, checkpoint_key("seats"))
    return row is not None and row["position"] >= position and not row["held"]


async def test_planted_a_consumer_that_reads_as_others_do_never_comes_past_it(
    spoilt: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eventsourcing import tail

    async def stops(storage: Any, query: Any, *, batch_size: int) -> Any:
        async for events in storage.read(query, batch_size=batch_size):
            yield Batch(events)

    monkeypatch.setattr(tail, "read_past_faults", stops)
    handler = InMemoryHandler()
    async with EventBus(QUICK, store=spoilt) as bus:
        await bus.subscribe([], handler, consumer_group="seats")
        await asyncio.sleep(0.6)
    assert ("seat-3", 1) not in seen(handler)


@pytest.mark.parametrize("stop", [False, True])
async def test_a_replay_counts_it_as_an_error_of_that_event(spoilt: EventStore, stop: bool) -> None:
    handler = InMemoryHandler()
    replay = EventReplay(spoilt, EventReplayConfig(stop_on_error=stop, batch_size=2))
    replay.add_handler(handler)
    result = await replay.replay_all_events()
    broken = (await first_fault(spoilt)).event_id
    assert [error["event_id"] for error in result.errors] == [str(broken)]
    assert "schema_version 1" in result.errors[0]["error"]
    assert (result.failed_events, result.stopped) == (1, stop)
    assert (result.total_events, result.processed_events) == ((3, 2) if stop else (6, 5))
    assert len(handler.events) == (2 if stop else 5)


async def first_fault(store: EventStore) -> UpcastError:
    async for batch in read_past_faults(store.storage, EventQuery(), batch_size=100):
        for fault in batch.faults.values():
            return fault
    raise AssertionError("there is one")


async def test_a_handler_that_does_not_take_its_type_is_not_concerned(spoilt: EventStore) -> None:
    handler = InMemoryHandler(["order.placed"])
    replay = EventReplay(spoilt)
    replay.add_handler(handler)
    result = await replay.replay_all_events()
    assert (result.failed_events, result.processed_events) == (0, 6)


async def test_reads_name_it(spoilt: EventStore) -> None:
    with pytest.raises(UpcastError) as caught:
        await spoilt.get_events("seat-2")
    assert str(caught.value.event_id) in str(caught.value)
    assert len(await spoilt.get_events("seat-1")) == 1
