"""Event statistics: every event counts once, and a caller's own at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta

from eventsourcing import EventStore
from tests.conformance.conftest import Connect
from tests.factories import NOON, draft, drafts


async def test_an_empty_store_has_counted_nothing(store: EventStore) -> None:
    assert await store.get_event_stats() == {
        "total_events": 0,
        "events_by_type": {},
        "events_by_aggregate_type": {},
        "latest_event_timestamp": None,
    }


async def test_events_are_counted_by_type_and_aggregate_type(store: EventStore) -> None:
    await store.append_events(
        [
            draft(timestamp=NOON),
            draft(event_type="order.paid", timestamp=NOON + timedelta(days=1)),
            draft("invoice-1", aggregate_type="invoice", timestamp=NOON - timedelta(days=1)),
        ]
    )
    assert await store.get_event_stats() == {
        "total_events": 3,
        "events_by_type": {"order.placed": 2, "order.paid": 1},
        "events_by_aggregate_type": {"order": 2, "invoice": 1},
        "latest_event_timestamp": "2024-05-02T12:00:00Z",
    }


async def test_a_caller_counts_its_own_writes_at_once_and_repetitions_never(store: EventStore) -> None:
    for number in range(1, 6):
        event = draft()
        await store.append_event(event)
        await store.append_event(event)
        assert (await store.get_event_stats())["total_events"] == number


async def test_the_first_and_the_last_moment_are_counted(store: EventStore) -> None:
    for moment in (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)):
        await store.append_event(draft(timestamp=moment))
        await store.get_event_stats()
    stats = await store.get_event_stats()
    assert stats["total_events"] == 2
    assert stats["latest_event_timestamp"] == "9999-12-31T23:59:59.999999Z"


async def test_concurrent_callers_never_count_an_event_twice(store: EventStore) -> None:
    acknowledged, started = 0, 0

    async def write() -> None:
        nonlocal acknowledged, started
        for number in range(15):
            started += 3
            await store.append_events(drafts(3, f"order-{number}"))
            acknowledged += 3

    async def ask() -> None:
        for _ in range(15):
            before = acknowledged
            total = (await store.get_event_stats())["total_events"]
            assert before <= total <= started

    await asyncio.gather(write(), write(), *(ask() for _ in range(6)))
    assert (await store.get_event_stats())["total_events"] == 90


async def test_an_append_still_open_does_not_hide_the_callers_own_events(
    postgres: EventStore, connect: Connect
) -> None:
    slow = await connect()
    async with slow.transaction():
        await slow.execute("SELECT hold_horizon()")
        await postgres.append_events(drafts(3))
        assert (await postgres.get_event_stats())["total_events"] == 3
        assert (await postgres.get_event_stats())["total_events"] == 3
    assert (await postgres.get_event_stats())["total_events"] == 3


async def test_statistics_agree_with_the_events_themselves(store: EventStore) -> None:
    await store.append_events([draft(f"order-{n % 5}", f"order.t{n % 3}") for n in range(50)])
    events = [event async for event in store.get_all_events()]
    stats = await store.get_event_stats()
    assert stats["events_by_type"] == Counter(event.event_type for event in events)
    assert stats["total_events"] == len(events)
