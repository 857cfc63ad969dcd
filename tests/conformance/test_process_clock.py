"""What does not come in time is found when its time is over, once, over every storage."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventsourcing import EventStore, process_clock
from eventsourcing.events import BaseEvent
from eventsourcing.process_checks import check_processes
from eventsourcing.process_clock import DEADLINES, DUE, OVERDUE, ProcessClock
from eventsourcing.process_models import ProcessModel, _models, register_process, sequence, within
from eventsourcing.worker import run_worker
from tests.conformance.test_process_checks import ORDER, START, an_event, orders
from tests.waiting import until


async def told(store: EventStore) -> list[dict[str, Any]]:
    await store.initialize()
    async with store.storage.transaction() as transaction:
        return [row for _, row in await transaction.scan(OVERDUE)]


async def waiting(store: EventStore) -> int:
    async with store.storage.transaction() as transaction:
        counts = [await transaction.count(table) for table in (DEADLINES, DUE)]
    assert counts[0] == counts[1]
    return counts[0]


async def test_what_is_overdue_is_told_when_its_time_is_over_and_once(store: EventStore) -> None:
    stored = await store.append_events([an_event("o-1", "order.placed"), an_event("o-2", "order.placed")])
    soon, later = START + timedelta(minutes=59), START + timedelta(minutes=61)
    clock = ProcessClock(store, ORDER)
    assert await clock.tick(soon) == 0
    assert await waiting(store) == 2
    await store.append_event(an_event("o-2", "order.paid", hours=0.5))
    assert await clock.tick(later) == 1
    (violation,) = await told(store)
    assert (violation["subject"], violation["reason"], violation["actual"]) == ("o-1", "overdue", None)
    assert violation["expected"] == ["order.changed", "order.paid"]
    assert violation["position"] == stored[0].position
    assert await waiting(store) == 0, "o-2 may take its time now"
    for again in (clock, ProcessClock(store, ORDER)):  # the same worker, and its successor
        assert await again.tick(later + timedelta(days=1)) == 0
    assert len(await told(store)) == 1


@pytest.mark.parametrize("seed", range(3))
async def test_the_clock_tells_what_the_check_finds(
    store: EventStore, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """In ticks between appends, with workers that come and go, in windows of every size."""
    rng, now = random.Random(seed), START + timedelta(days=1)
    clock = ProcessClock(store, ORDER)
    events = orders(seed)
    while events:
        count = rng.randint(1, 30)
        await store.append_events(events[:count])
        events = events[count:]
        monkeypatch.setattr(process_clock, "WINDOW", rng.choice([1, 3, 1000]))
        if rng.random() < 0.5:
            clock = ProcessClock(store, ORDER)
        await clock.tick(START)  # nothing is due yet
    assert await told(store) == []
    await clock.tick(now)
    summary = await check_processes(store, ORDER, now=now)
    overdue = {each.subject for each in summary.violations if each.reason == "overdue"}
    assert {row["subject"] for row in await told(store)} == overdue != set()


async def test_a_model_that_was_changed_is_watched_anew(store: EventStore) -> None:
    await store.append_event(an_event("o-1", "order.placed"))
    assert await ProcessClock(store, ORDER).tick(START) == 0
    quicker = ProcessModel(
        "order", sequence("order.placed", within("order.paid", minutes=1)), aggregate_types=("order",)
    )
    assert await ProcessClock(store, quicker).tick(START + timedelta(minutes=2)) == 1


@pytest.fixture
def live() -> Iterator[ProcessModel]:
    """A model that plugins registered, with a limit that is soon over."""
    model = ProcessModel(
        "parcel", sequence("parcel.sent", within("parcel.got", seconds=1)), aggregate_types=("parcel",)
    )
    register_process(model)
    yield model
    del _models[model.name]


async def test_a_worker_tells_within_a_tick_what_did_not_come(
    store: EventStore, live: ProcessModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from eventsourcing import EventBus, EventBusConfig, Settings
    from eventsourcing.bootstrap import System

    monkeypatch.setattr(process_clock, "TICK_S", 0.1)
    system = System(Settings(), store, EventBus(EventBusConfig(), store=store))
    stop = asyncio.Event()
    worker = asyncio.create_task(run_worker(system, stop))
    sent = BaseEvent(
        event_type="parcel.sent",
        aggregate_id="p-1",
        aggregate_type="parcel",
        timestamp=datetime.now(UTC),
        data={},
    )
    await store.append_event(sent)

    async def is_told() -> bool:
        return bool(await told(store))

    try:
        await until(is_told)
    finally:
        stop.set()
        await worker
    assert live.name == (await told(store))[0]["model"]
    assert "'p-1' is overdue in 'parcel': expected parcel.got" in caplog.text
