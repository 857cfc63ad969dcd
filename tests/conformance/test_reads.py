"""Reading: every condition of a query, both directions, limits and pages, alike on every storage."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import polars as pl
import pytest

from eventsourcing import BaseEvent, CursorAheadError, EventQuery, EventStore, RecordedEvent
from eventsourcing.event_columns import COLUMNS
from tests.factories import NOON, draft, unused_id

ONE, TWO = UUID(int=1), UUID(int=2)


def scene() -> list[BaseEvent]:
    """Three aggregates, three types, two correlations; times that run against the positions."""
    return [
        draft(
            f"order-{number % 3}",
            ("order.placed", "order.paid", "order.sent")[number % 4 % 3],
            aggregate_type=("order", "invoice")[number % 2],
            correlation_id=(None, ONE, TWO)[number // 2 % 3],
            timestamp=NOON - timedelta(minutes=number),
            data={"number": number},
        )
        for number in range(24)
    ]


@pytest.fixture
async def stored(store: EventStore) -> list[RecordedEvent]:
    events = scene()
    return [*await store.append_events(events[:10]), *await store.append_events(events[10:])]


async def numbers(store: EventStore, query: EventQuery, batch_size: int = 1000) -> list[int]:
    return [event.data["number"] async for event in store.read(query, batch_size=batch_size)]


QUERIES = {
    "everything": {},
    "an aggregate": {"aggregate_id": "order-1"},
    "an unknown aggregate": {"aggregate_id": "order"},
    "a type": {"event_types": ("order.paid",)},
    "types": {"event_types": ("order.paid", "order.sent")},
    "an unknown type": {"event_types": ("order",)},
    "an aggregate type": {"aggregate_types": ("invoice",)},
    "aggregate types": {"aggregate_types": ("invoice", "order")},
    "a correlation": {"correlation_id": ONE},
    "an unknown correlation": {"correlation_id": UUID(int=3)},
    "from a time": {"from_timestamp": NOON - timedelta(minutes=7)},
    "to a time": {"to_timestamp": NOON - timedelta(minutes=7)},
    "one moment": {
        "from_timestamp": NOON - timedelta(minutes=7),
        "to_timestamp": NOON - timedelta(minutes=7),
    },
    "an empty window": {"from_timestamp": NOON, "to_timestamp": NOON - timedelta(minutes=1)},
    "from a version": {"from_version": 5},
    "to a version": {"to_version": 2},
    "versions of an aggregate": {"aggregate_id": "order-2", "from_version": 3, "to_version": 5},
    "after a position": {"after_position": 10},
    "after nothing": {"after_position": 0},
    "to a position": {"to_position": 10},
    "between positions": {"after_position": 5, "to_position": 15},
    "an aggregate after a position": {"aggregate_id": "order-0", "after_position": 8},
    "a type in a stream": {"aggregate_id": "order-0", "event_types": ("order.paid",)},
    "a correlation and a type": {"correlation_id": TWO, "event_types": ("order.placed",)},
    "all at once": {
        "aggregate_id": "order-1",
        "event_types": ("order.placed", "order.paid"),
        "aggregate_types": ("order", "invoice"),
        "from_timestamp": NOON - timedelta(minutes=20),
        "to_timestamp": NOON,
        "from_version": 1,
        "to_version": 7,
        "after_position": 1,
        "to_position": 23,
    },
}


@pytest.mark.parametrize("backwards", [False, True])
async def test_a_query_gives_what_matches_in_its_order(
    store: EventStore, stored: list[RecordedEvent], backwards: bool, subtests: pytest.Subtests
) -> None:
    for name, fields in QUERIES.items():
        with subtests.test(name):
            query = EventQuery(**fields, backwards=backwards)  # type: ignore[arg-type]  # each field's own type
            ordered = stored[::-1] if backwards else stored
            matching = [event.data["number"] for event in ordered if query.matches(event)]
            assert await numbers(store, query) == matching
            for size in (1, 3):
                assert await numbers(store, query, batch_size=size) == matching
            for limit in (0, 1, 2, 5, 100):
                assert await numbers(store, query.where(limit=limit), batch_size=2) == matching[:limit]


async def test_the_scene_tells_every_query_apart(stored: list[RecordedEvent]) -> None:
    found = {
        name: [event.position for event in stored if EventQuery(**fields).matches(event)]  # type: ignore[arg-type]  # see above
        for name, fields in QUERIES.items()
    }
    empty = {name for name, positions in found.items() if not positions}
    assert empty == {"an unknown aggregate", "an unknown type", "an unknown correlation", "an empty window"}


async def test_pages_hold_at_most_the_batch_size_and_are_never_empty(
    store: EventStore, stored: list[RecordedEvent]
) -> None:
    sizes = [len(batch) async for batch in store.read_batches(EventQuery(), batch_size=7)]
    assert sizes == [7, 7, 7, 3]
    sizes = [len(batch) async for batch in store.read_batches(EventQuery(), batch_size=8)]
    assert sizes == [8, 8, 8]
    nothing = EventQuery(aggregate_id="nobody")
    assert [batch async for batch in store.read_batches(nothing)] == []


async def test_an_event_is_found_by_its_id(store: EventStore, stored: list[RecordedEvent]) -> None:
    assert await store.get_event(stored[4].event_id) == stored[4]
    assert await store.get_event(unused_id()) is None


async def test_a_stream_is_read_between_inclusive_versions(
    store: EventStore, stored: list[RecordedEvent]
) -> None:
    assert [event.event_version for event in await store.get_events("order-1")] == list(range(1, 9))
    assert [event.event_version for event in await store.get_events("order-1", 3, 5)] == [3, 4, 5]
    assert [event.event_version for event in await store.get_events("order-1", to_version=1)] == [1]
    assert await store.get_events("order-1", 9) == []
    assert await store.get_events("nobody") == []


async def test_events_are_read_by_one_type_or_several(store: EventStore, stored: list[RecordedEvent]) -> None:
    paid = [event for event in stored if event.event_type == "order.paid"]
    assert await store.get_events_by_type("order.paid") == paid
    assert await store.get_events_by_type(["order.paid"], limit=2) == paid[:2]
    both = [event for event in stored if event.event_type in ("order.paid", "order.sent")]
    assert await store.get_events_by_type(("order.sent", "order.paid")) == both
    assert await store.get_events_by_type([]) == []
    window = [event for event in paid if event.timestamp >= paid[2].timestamp]
    assert await store.get_events_by_type("order.paid", from_timestamp=paid[2].timestamp) == window


async def test_naive_times_are_utc_and_others_are_converted(
    store: EventStore, stored: list[RecordedEvent]
) -> None:
    naive = datetime(2024, 5, 1, 12, 0)  # noqa: DTZ001 - a naive time is the case
    assert [event.timestamp for event in await store.get_events_by_type("order.placed", naive)] == [NOON]
    elsewhere = NOON.astimezone(timezone(timedelta(hours=5)))
    assert [event.timestamp async for event in store.get_all_events(elsewhere, elsewhere)] == [NOON]
    assert stored[0].timestamp.tzinfo == UTC


async def test_no_correlation_matches_no_query(store: EventStore, stored: list[RecordedEvent]) -> None:
    found = await store.get_events_by_correlation_id(ONE)
    assert found == [event for event in stored if event.correlation_id == ONE]
    assert all(event.correlation_id is not None for event in found)


async def test_all_events_come_in_position_order_from_any_position(
    store: EventStore, stored: list[RecordedEvent]
) -> None:
    assert [event async for event in store.get_all_events(batch_size=5)] == stored
    after = stored[9].position
    assert [event async for event in store.get_all_events(after_position=after)] == stored[10:]
    assert [event async for event in store.get_all_events(after_position=stored[-1].position)] == []


async def test_a_stream_may_be_left_half_read(store: EventStore, stored: list[RecordedEvent]) -> None:
    async for event in store.read(EventQuery(), batch_size=2):
        if event.position == stored[2].position:
            break
    assert len(await store.get_events("order-1")) == 8


async def test_a_cursor_ahead_of_the_store_is_an_error(
    store: EventStore, stored: list[RecordedEvent]
) -> None:
    head = stored[-1].position
    for read in (
        store.read(EventQuery(after_position=head + 1)),
        store.read(EventQuery(after_position=head + 1, aggregate_id="order-1")),
        store.get_all_events(after_position=head + 1),
        store.follow(after=head + 1),
    ):
        with pytest.raises(CursorAheadError) as caught:
            await anext(read)
        assert (caught.value.cursor, caught.value.head) == (head + 1, head)


async def test_a_cursor_in_an_empty_store_is_ahead_of_it(store: EventStore) -> None:
    with pytest.raises(CursorAheadError):
        await anext(store.read(EventQuery(after_position=1)))


async def test_bounds_beyond_any_event_find_nothing(store: EventStore, stored: list[RecordedEvent]) -> None:
    assert await store.get_events("order-1", from_version=2**40) == []
    assert len(await store.get_events("order-1", to_version=2**40)) == 8
    assert len(await numbers(store, EventQuery(to_position=2**62))) == 24
    assert len(await numbers(store, EventQuery(limit=2**62))) == 24


async def test_events_of_one_moment_keep_the_order_they_were_stored_in(store: EventStore) -> None:
    events = [draft(f"order-{n % 2}", timestamp=NOON, data={"number": n}) for n in range(6)]
    await store.append_events(events)
    assert await numbers(store, EventQuery(from_timestamp=NOON)) == list(range(6))


async def test_columns_are_those_of_the_events(store: EventStore, stored: list[RecordedEvent]) -> None:
    """Every condition, page size and order gives the same as the reading of events."""
    awkward = {"text": 'tab\t "quoted", \\slash\\ and line\nbreak', "none": None, "number": 99}
    await store.append_event(draft("order-9", "order.placed", correlation_id=TWO, data=awkward))
    spaced = pl.DataFrame(
        {
            "event_type": "order.placed",
            "aggregate_id": "order\\n-10",
            "aggregate_type": "order",
            "data": [json.dumps(awkward, indent="\t"), json.dumps({"path": "C:\\new\\table\\"})],
        }
    )
    await store.append_frame(spaced, name="spaced")
    queries = [
        EventQuery(),
        EventQuery(limit=5, backwards=True),
        EventQuery(correlation_id=TWO, event_types=("order.placed", "order.sent")),
        EventQuery(aggregate_id="order-1", from_version=2),
        EventQuery(aggregate_types=("invoice",)),
        EventQuery(from_timestamp=NOON - timedelta(minutes=9)),
        EventQuery(event_types=("nobody.knows",)),
    ]
    for query in queries:
        for batch_size in (3, 1000):
            frames = [frame async for frame in store.read_frames(query, batch_size=batch_size)]
            rows = [row for frame in frames for row in frame.iter_rows(named=True)]
            told = [{**row, "data": json.loads(row["data"])} for row in rows]
            events = [event async for event in store.read(query)]
            assert told == [{name: getattr(event, name) for name in COLUMNS} for event in events]
            assert all(frame.schema == COLUMNS for frame in frames)


async def test_columns_refuse_what_reading_refuses(store: EventStore, stored: list[RecordedEvent]) -> None:
    with pytest.raises(CursorAheadError):
        [_ async for _ in store.read_frames(EventQuery(after_position=stored[-1].position + 1000))]
