"""Appending: atomic, in the order given, and returned as stored (G1)."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from eventsourcing import (
    ConcurrencyError,
    DuplicateEventError,
    EventQuery,
    EventSourcingError,
    EventStore,
    EventType,
    InvalidEventError,
    MigrationStartedEvent,
    RecordedEvent,
)
from tests.factories import NOON, draft, drafts, unused_id


async def test_an_appended_event_comes_back_with_every_field_it_was_given(store: EventStore) -> None:
    event = draft(
        timestamp=NOON,
        correlation_id=unused_id(),
        causation_id=unused_id(),
        metadata={"by": "us"},
        data={"n": [1, {"x": None}]},
    )
    stored = await store.append_event(event)
    assert isinstance(stored, RecordedEvent)
    assert stored.model_dump() == {
        **event.model_dump(),
        "event_version": 1,
        "position": stored.position,
        "recorded_at": stored.recorded_at,
    }
    assert await store.get_events("order-1") == [stored]


async def test_the_draft_is_left_as_it_was(store: EventStore) -> None:
    event = draft()
    await store.append_event(event)
    assert event.event_version == 0


async def test_a_recorded_event_dumps_to_json(store: EventStore) -> None:
    stored = await store.append_event(draft(correlation_id=unused_id()))
    assert RecordedEvent.model_validate_json(stored.model_dump_json()) == stored


async def test_recorded_at_is_the_time_of_storing_and_timestamp_that_of_happening(store: EventStore) -> None:
    before = datetime.now(UTC)
    stored = await store.append_event(draft(timestamp=NOON))
    assert stored.timestamp == NOON
    assert stored.recorded_at.utcoffset() is not None
    assert stored.recorded_at.year == before.year or stored.recorded_at > before


async def test_a_batch_comes_back_in_the_order_given_whatever_its_aggregates(store: EventStore) -> None:
    events = [draft(name) for name in ("z", "a", "m", "a", "z", "b")]
    stored = await store.append_events(events)
    assert [event.event_id for event in stored] == [event.event_id for event in events]
    assert [event.position for event in stored] == sorted(event.position for event in stored)
    assert [(event.aggregate_id, event.event_version) for event in stored] == [
        ("z", 1),
        ("a", 1),
        ("m", 1),
        ("a", 2),
        ("z", 2),
        ("b", 1),
    ]


async def test_an_empty_batch_appends_nothing(store: EventStore) -> None:
    assert await store.append_events([]) == []
    assert await store.horizon() == 0


async def test_one_of_our_types_comes_back_as_its_enum_member(store: EventStore) -> None:
    await store.append_event(
        MigrationStartedEvent(migration_id="migration-1", source_config={}, target_config={})
    )
    [stored] = await store.get_events("migration-1")
    assert stored.event_type is EventType.MIGRATION_STARTED


@pytest.mark.parametrize(
    ("spoiler", "error"),
    [
        ({"event_version": 7}, ConcurrencyError),
        ({"event_id": UUID(int=7)}, DuplicateEventError),
        ({"data": {"x": float("nan")}}, InvalidEventError),
    ],
)
async def test_a_refused_batch_leaves_nothing_behind(
    store: EventStore, spoiler: dict[str, Any], error: type[EventSourcingError]
) -> None:
    first = await store.append_event(draft("first", event_id=UUID(int=7)))
    with pytest.raises(error):
        await store.append_events([*drafts(3, "kept-out"), draft("other", **spoiler), draft("last")])
    assert [event.event_id async for event in store.read(EventQuery())] == [first.event_id]
    assert await store.horizon() == first.position
    assert (await store.get_event_stats())["total_events"] == 1


async def test_an_append_goes_on_after_a_refused_one(store: EventStore) -> None:
    with pytest.raises(ConcurrencyError):
        await store.append_event(draft(event_version=2))
    assert (await store.append_event(draft())).event_version == 1


async def test_a_store_opens_itself_on_first_use_and_again_after_closing(store: EventStore) -> None:
    stored = await store.append_event(draft())
    await store.close()
    assert await store.get_events("order-1") == [stored]
    await store.close()
    assert (await store.append_event(draft())).event_version == 2


async def test_many_callers_may_open_one_store_at_once(store: EventStore) -> None:
    await store.close()
    stored = await asyncio.gather(*(store.append_event(draft(f"order-{n}")) for n in range(10)))
    assert len({event.position for event in stored}) == 10


async def test_what_a_caller_does_to_an_answer_does_not_reach_the_store(store: EventStore) -> None:
    event = draft(data={"n": {"deep": 1}}, metadata={"by": "us"})
    appended = await store.append_event(event)
    again = await store.append_event(event)
    [read] = await store.get_events("order-1")
    for answer in (event, appended, again, read):
        answer.data["n"]["deep"] = 2
        answer.metadata["by"] = "somebody else"
    [stored] = await store.get_events("order-1")
    assert stored.data == {"n": {"deep": 1}}
    assert stored.metadata == {"by": "us"}


async def test_a_large_batch_is_one_append(store: EventStore) -> None:
    events = [draft(f"order-{n % 7}", data={"n": n}) for n in range(3000)]
    stored = await store.append_events(events)
    assert [event.data["n"] for event in stored] == list(range(3000))
    assert [event.data["n"] async for event in store.get_all_events()] == list(range(3000))
