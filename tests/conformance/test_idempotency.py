"""Appending again: the same event_id is stored once, and settled before any version (G4)."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from eventsourcing import (
    NO_STREAM,
    BaseEvent,
    ConcurrencyError,
    DuplicateEventError,
    EventStore,
    InvalidEventError,
    MigrationStartedEvent,
)
from eventsourcing.events import RESERVED_METADATA
from tests.factories import NOON, draft, drafts, same, unused_id


async def test_the_same_event_is_stored_once_and_comes_back_as_stored(store: EventStore) -> None:
    event = draft(data={"n": 1})
    first = await store.append_event(event)
    assert await store.append_event(same(event)) == first
    assert await store.get_events("order-1") == [first]


async def test_a_defaulted_timestamp_is_not_compared(store: EventStore) -> None:
    event = draft()
    first = await store.append_event(event)
    again = same(event)
    again.__dict__["timestamp"] = event.timestamp + timedelta(hours=1)
    assert await store.append_event(again) == first


async def test_a_timestamp_that_the_caller_set_is_compared(store: EventStore) -> None:
    event = draft(timestamp=NOON)
    await store.append_event(event)
    with pytest.raises(DuplicateEventError) as caught:
        await store.append_event(same(event, timestamp=NOON + timedelta(microseconds=1)))
    assert (caught.value.event_id, caught.value.field) == (event.event_id, "timestamp")


def started(event_id: UUID, **fields: Any) -> MigrationStartedEvent:
    return MigrationStartedEvent(
        event_id=event_id, migration_id="migration-1", source_config={}, target_config={}, **fields
    )


async def test_a_defaulted_moment_of_the_payload_is_not_compared(store: EventStore) -> None:
    event_id = unused_id()
    first = await store.append_event(started(event_id))
    assert await store.append_event(started(event_id)) == first


async def test_a_moment_of_the_payload_that_the_caller_set_is_compared(store: EventStore) -> None:
    event_id = unused_id()
    await store.append_event(started(event_id))
    with pytest.raises(DuplicateEventError) as caught:
        await store.append_event(started(event_id, started_at=NOON))
    assert caught.value.field == "data"


@pytest.mark.parametrize("key", sorted(RESERVED_METADATA - {"schema_version"}))
async def test_reserved_metadata_is_not_compared(store: EventStore, key: str) -> None:
    event = draft(metadata={key: "first", "by": "us"})
    first = await store.append_event(event)
    assert await store.append_event(same(event, metadata={key: "second", "by": "us"})) == first
    assert await store.append_event(same(event, metadata={"by": "us"})) == first


async def test_the_schema_version_of_a_type_of_nobody_is_not_compared(store: EventStore) -> None:
    event = draft(metadata={"schema_version": 1})
    first = await store.append_event(event)
    assert await store.append_event(same(event, metadata={"schema_version": 2})) == first
    for malformed in (0, True, "2", None):
        with pytest.raises(InvalidEventError, match=r"metadata\.schema_version"):
            await store.append_event(draft(metadata={"schema_version": malformed}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("event_type", "order.cancelled"),
        ("aggregate_id", "order-2"),
        ("aggregate_type", "invoice"),
        ("correlation_id", UUID(int=9)),
        ("correlation_id", None),
        ("causation_id", UUID(int=9)),
        ("data", {"n": 2}),
        ("data", {"n": 1, "more": None}),
        ("data", {}),
        ("data", {"n": 1.0}),
        ("metadata", {"by": "another"}),
        ("metadata", {}),
        ("event_version", 2),
    ],
)
async def test_the_same_id_with_other_content_is_refused(store: EventStore, field: str, value: Any) -> None:
    event = draft(correlation_id=UUID(int=1), causation_id=UUID(int=2), data={"n": 1}, metadata={"by": "us"})
    first = await store.append_event(event)
    with pytest.raises(DuplicateEventError) as caught:
        await store.append_event(same(event, **{field: value}))
    assert (caught.value.event_id, caught.value.field) == (event.event_id, field)
    assert [stored.event_id async for stored in store.get_all_events()] == [first.event_id]


async def test_content_is_compared_in_canonical_json(store: EventStore) -> None:
    moment = datetime(2024, 5, 1, 12, tzinfo=UTC)
    event = draft(data={"price": Decimal("1.50"), "at": moment, "id": UUID(int=3), "raw": b"ab"})
    first = await store.append_event(event)
    spelled = {
        "raw": "YWI=",
        "id": str(UUID(int=3)),
        "at": "2024-05-01T12:00:00Z",
        "price": "1.50",
    }
    assert await store.append_event(same(event, data=spelled)) == first


async def test_the_id_is_settled_before_any_version(store: EventStore) -> None:
    first, second = await store.append_events(drafts(2))
    assert await store.append_event(same(first), expected_version=NO_STREAM) == first
    with pytest.raises(DuplicateEventError):
        await store.append_event(
            draft(event_id=second.event_id, data={"other": True}), expected_version=NO_STREAM
        )


async def test_a_call_repeated_with_its_expected_version_gives_the_same_answer(store: EventStore) -> None:
    events = drafts(3)
    first = await store.append_events(events, expected_version=NO_STREAM)
    await store.append_event(draft())
    assert await store.append_events(list(map(same, events)), expected_version=NO_STREAM) == first


async def test_in_a_batch_the_stored_come_back_and_the_rest_is_appended(store: EventStore) -> None:
    known = drafts(2, "order-1")
    await store.append_events(known)
    batch = [draft("order-2"), same(known[1]), draft("order-1"), same(known[0]), draft("order-2")]
    stored = await store.append_events(batch)
    assert [event.event_id for event in stored] == [event.event_id for event in batch]
    assert [(event.aggregate_id, event.event_version) for event in stored] == [
        ("order-2", 1),
        ("order-1", 2),
        ("order-1", 3),
        ("order-1", 1),
        ("order-2", 2),
    ]
    assert (await store.get_event_stats())["total_events"] == 5


async def test_a_batch_with_one_changed_repetition_appends_nothing(store: EventStore) -> None:
    known = await store.append_event(draft(data={"n": 1}))
    with pytest.raises(DuplicateEventError):
        await store.append_events([draft("order-2"), same(known, data={"n": 2})])
    assert await store.get_events("order-2") == []


async def test_an_event_given_twice_in_a_call_is_stored_once(store: EventStore) -> None:
    event, other = draft(data={"n": 1}), draft("order-2")
    stored = await store.append_events([event, other, same(event), event])
    assert [answer.event_id for answer in stored] == [
        event.event_id,
        other.event_id,
        event.event_id,
        event.event_id,
    ]
    assert len(await store.get_events("order-1")) == 1


async def test_an_event_given_twice_takes_one_version_only(store: EventStore) -> None:
    event, following = draft(), draft()
    stored = await store.append_events([event, event, following], expected_version=NO_STREAM)
    assert [answer.event_version for answer in stored] == [1, 1, 2]
    exact = draft("order-2", event_version=1)
    assert len(await store.append_events([exact, exact], expected_version=NO_STREAM)) == 2


async def test_twins_of_a_call_may_differ_in_what_nobody_set(store: EventStore) -> None:
    event_id = unused_id()
    stored = await store.append_events([started(event_id), started(event_id)])
    assert stored[0] == stored[1]


async def test_twins_of_a_call_that_differ_are_refused(store: EventStore) -> None:
    event = draft(data={"n": 1})
    with pytest.raises(DuplicateEventError):
        await store.append_events([event, same(event, data={"n": 2})])
    assert await store.horizon() == 0


async def test_many_callers_of_one_event_get_the_one_stored(store: EventStore) -> None:
    events = [draft(name) for name in ("b", "a", "c")]
    answers = await asyncio.gather(*(store.append_events(list(map(same, events))) for _ in range(12)))
    assert all(answer == answers[0] for answer in answers)
    assert (await store.get_event_stats())["total_events"] == 3


async def test_batches_that_overlap_store_each_event_once(store: EventStore) -> None:
    events = [draft(f"order-{n}") for n in range(6)]
    calls = [[events[(start + n) % 6] for n in range(3)] for start in range(6)]
    answers = await asyncio.gather(*map(store.append_events, calls))
    by_id: dict[UUID, set[int]] = {}
    for answer in answers:
        for stored in answer:
            by_id.setdefault(stored.event_id, set()).add(stored.position)
    assert all(len(positions) == 1 for positions in by_id.values())
    assert (await store.get_event_stats())["total_events"] == 6


async def test_a_recorded_event_may_be_appended_again(store: EventStore) -> None:
    first = await store.append_event(draft(data={"n": 1}))
    assert await store.append_event(first) == first


async def test_a_repetition_does_not_hide_a_conflict_of_the_rest(store: EventStore) -> None:
    known = draft()
    await store.append_event(known)
    fresh: BaseEvent = draft("order-2", event_version=5)
    with pytest.raises(ConcurrencyError) as caught:
        await store.append_events([same(known), fresh])
    assert (caught.value.aggregate_id, caught.value.expected, caught.value.actual) == ("order-2", 4, 0)


async def test_of_many_appends_of_one_event_one_does_not_find_it(store: EventStore) -> None:
    for number in range(10):
        event = draft(f"order-{number}")
        appended = await asyncio.gather(*(store.append([event]) for _ in range(12)))
        assert sum(not done.found for done in appended) == 1
        assert {done.events[0].position for done in appended} == {appended[0].events[0].position}


async def test_a_batch_tells_which_of_its_events_were_stored_before(store: EventStore) -> None:
    events = [draft(f"order-{number}") for number in range(150)]
    await store.append_events(events[:3])
    done = await store.append(events)
    assert done.found == {event.event_id for event in events[:3]}
    assert [event.event_id for event in done.events] == [event.event_id for event in events]
