"""An old payload reads as the newest one wherever it is read, and what is stored stays (ADR 9)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import polars as pl
import pytest

from eventsourcing import (
    DuplicateEventError,
    EventBus,
    EventBusConfig,
    EventQuery,
    EventReplay,
    EventStore,
    InvalidEventError,
    RecordedEvent,
    UpcastError,
    upcasting,
)
from eventsourcing.canonical import decode
from eventsourcing.storage.memory import InMemoryStorage
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.testing import InMemoryHandler
from tests.factories import NOON, draft, same, unused_id
from tests.seats import TYPE, own_registry, release
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("own_registry")
__all__ = ["own_registry"]

OLD = {"passenger": "Ada Lovelace", "row": 4}
NEW = {"given_name": "Ada", "family_name": "Lovelace", "party": 1, "row": 4}


async def reserved(store: EventStore) -> RecordedEvent:
    """A seat that the first release stored."""
    seat = release(1)
    return await store.append_event(seat(seat_id="seat-1", timestamp=NOON, correlation_id=unused_id(), **OLD))


async def stored_data(store: EventStore, event: RecordedEvent) -> Any:
    """The payload as it is stored, below every upcast."""
    storage = store.storage
    if isinstance(storage, PostgresStorage):
        stored = "SELECT data FROM events WHERE event_id = $1"
        return decode(await storage.pool.fetchval(stored, event.event_id))
    assert isinstance(storage, InMemoryStorage)
    return storage._by_id[event.event_id].data


async def every_way_to_read(store: EventStore, event: RecordedEvent) -> dict[str, list[RecordedEvent]]:
    assert event.correlation_id is not None
    one = await store.get_event(event.event_id)
    assert one is not None
    return {
        "stream": await store.get_events(event.aggregate_id),
        "type": await store.get_events_by_type(TYPE),
        "correlation": await store.get_events_by_correlation_id(event.correlation_id),
        "all": [found async for found in store.get_all_events()],
        "backwards": [found async for found in store.read(EventQuery(backwards=True))],
        "id": [one],
        "followed": (await anext(store.follow())).events,
        "replayed": await replayed(store),
        "delivered": await delivered(store),
    }


async def replayed(store: EventStore) -> list[RecordedEvent]:
    handler = InMemoryHandler()
    replay = EventReplay(store)
    replay.add_handler(handler)
    await replay.replay_all_events()
    return [event for event in handler.events if isinstance(event, RecordedEvent)]


async def delivered(store: EventStore) -> list[RecordedEvent]:
    handler = InMemoryHandler()
    async with EventBus(EventBusConfig(), store=store) as bus:
        await bus.subscribe([TYPE], handler, consumer_group="seats")
        await until(lambda: bool(handler.events))
    return [event for event in handler.events if isinstance(event, RecordedEvent)]


async def test_every_reader_sees_the_newest_payload_and_the_store_keeps_the_old_one(
    store: EventStore,
) -> None:
    event = await reserved(store)
    before = await stored_data(store, event)
    release(3)
    for way, found in (await every_way_to_read(store, event)).items():
        assert [one.data for one in found] == [{**NEW, "reserved_at": "2024-05-01T12:00:00Z"}], way
        assert found[0].metadata == {"schema_version": 3}, way
        assert found[0].model_copy(update={"data": 0, "metadata": 0}) == event.model_copy(
            update={"data": 0, "metadata": 0}
        ), way
    (frame,) = [found async for found in store.read_frames(EventQuery())]
    assert json.loads(frame["data"].item()) == {**NEW, "reserved_at": "2024-05-01T12:00:00Z"}
    assert await stored_data(store, event) == before
    assert before["passenger"] == "Ada Lovelace"


async def test_planted_without_the_upcasts_readers_see_the_old_payload(
    store: EventStore,
) -> None:
    event = await reserved(store)
    release(3)
    upcasting.VERSIONED.clear()
    assert {found[0].data.get("passenger") for found in (await every_way_to_read(store, event)).values()} == {
        "Ada Lovelace"
    }


async def test_an_append_says_the_version_and_reading_it_changes_nothing(store: EventStore) -> None:
    seat = release(3)
    event = await store.append_event(
        seat(seat_id="seat-1", given_name="Ada", family_name="Lovelace", party=2, metadata={"by": "us"})
    )
    assert event.metadata == {"by": "us", "schema_version": 3}
    assert await store.get_events("seat-1") == [event]


async def test_a_frame_is_appended_at_the_newest_version(store: EventStore) -> None:
    release(3)
    others = [("seat-1", OLD, {"schema_version": 1}), ("seat-2", NEW, {"by": "us"}), ("seat-3", NEW, {})]
    rows = [
        {"event_type": TYPE, "aggregate_id": key, "data": data, "metadata": metadata}
        for key, data, metadata in others
    ]
    rows.append({"event_type": "order.placed", "aggregate_id": "order-1", "data": {"n": 1}, "metadata": {}})
    frame = pl.DataFrame(
        [{**row, "data": json.dumps(row["data"]), "metadata": json.dumps(row["metadata"])} for row in rows]
    ).with_columns(aggregate_type=pl.lit("thing"))
    await store.append_frame(frame, name="seats")
    stored = [event async for event in store.get_all_events()]
    assert [event.data for event in stored] == [NEW, NEW, NEW, {"n": 1}]
    assert [event.metadata for event in stored] == [
        {"schema_version": 3},
        {"by": "us", "schema_version": 3},
        {"schema_version": 3},
        {},
    ]
    assert (await store.append_frame(frame, name="seats")).appended_now == 0
    unknown = frame.with_columns(metadata=pl.lit('{"schema_version": 4}'))
    with pytest.raises(InvalidEventError) as caught:
        await store.append_frame(unknown, name="more seats")
    assert (caught.value.index, caught.value.field) == (0, "metadata.schema_version")


async def test_a_type_at_version_1_and_one_of_nobody_carry_no_version(store: EventStore) -> None:
    seat = release(1)
    stored = await store.append_events([seat(seat_id="seat-1", passenger="Ada"), draft()])
    assert [event.metadata for event in stored] == [{}, {}]


async def test_an_append_repeated_after_the_type_gained_versions_is_the_same_event(
    store: EventStore,
) -> None:
    event = await reserved(store)
    seat = release(3)
    now = await store.get_events("seat-1")
    fields: dict[str, Any] = {"event_id": event.event_id, "seat_id": "seat-1", "timestamp": NOON}
    assert await store.append_event(seat(**fields, **NEW)) == now[0]
    fresh, repeated = await store.append_events([draft(), seat(**fields, **NEW)])
    assert (fresh.event_version, repeated) == (1, now[0])
    with pytest.raises(DuplicateEventError) as caught:
        await store.append_event(seat(**fields, **{**NEW, "party": 2}))
    assert (caught.value.event_id, caught.value.field) == (event.event_id, "data")


async def test_a_plain_draft_repeated_with_its_old_payload_is_the_same_event(store: EventStore) -> None:
    release(1)
    old = draft("seat-1", TYPE, data=OLD)
    await store.append_event(old)
    release(3)
    assert (await store.append_event(same(old))).data == NEW
    with pytest.raises(DuplicateEventError):
        await store.append_event(same(old, data={**OLD, "passenger": "Ada Byron"}))


async def test_a_draft_that_names_an_older_version_is_stored_as_the_newest(store: EventStore) -> None:
    release(3)
    stored = await store.append_event(draft("seat-1", TYPE, data=OLD, metadata={"schema_version": 1}))
    assert (stored.data, stored.metadata) == (NEW, {"schema_version": 3})
    assert await stored_data(store, stored) == NEW


async def test_an_event_of_a_newer_release_stops_the_reader_and_says_which(store: EventStore) -> None:
    seat = release(3)
    event = await store.append_event(seat(seat_id="seat-1", given_name="Ada", family_name="", party=1))
    for older in (1, 2):
        release(older)
        with pytest.raises(UpcastError) as caught:
            await store.get_events("seat-1")
        told = caught.value
        assert (told.event_id, told.event_type, told.version) == (event.event_id, TYPE, 3)
        assert str(told) == (
            f"event {event.event_id} ({TYPE}, schema_version 3): this code knows versions 1 to {older}"
        )
        assert not told.retryable


async def test_an_upcast_that_raises_stops_the_reader_and_says_where(store: EventStore) -> None:
    release(1)
    event = await store.append_event(draft("seat-1", TYPE, data={"row": 4}))
    release(3)
    with pytest.raises(UpcastError, match=r"@upcast\(1\) failed with KeyError$") as caught:
        await store.get_events("seat-1")
    assert (caught.value.event_id, caught.value.event_type, caught.value.version) == (event.event_id, TYPE, 1)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
async def test_all_before_an_event_that_cannot_be_read_is_given(store: EventStore, batch_size: int) -> None:
    release(1)
    readable = [draft(f"seat-{n}", TYPE, data=OLD) for n in range(7)]
    await store.append_events([*readable, draft("seat-7", TYPE, data={}), draft("seat-8", TYPE, data=OLD)])
    release(3)
    for events in (store.read(EventQuery(), batch_size=batch_size), followed(store, batch_size)):
        given: list[str] = []
        with pytest.raises(UpcastError):
            await collect(events, given)
        assert given == [f"seat-{n}" for n in range(7)]


async def followed(store: EventStore, batch_size: int) -> AsyncIterator[RecordedEvent]:
    async for piece in store.follow(batch_size=batch_size):
        for event in piece.events:
            yield event


async def collect(events: AsyncIterator[RecordedEvent], given: list[str]) -> None:
    async for event in events:
        given.append(event.aggregate_id)  # noqa: PERF401 - what came before a fault must stay


async def test_a_type_that_nobody_registered_here_reads_as_it_is(store: EventStore) -> None:
    event = await store.append_event(draft(metadata={"schema_version": 9}))
    assert await store.get_events("order-1") == [event]
    assert event.metadata == {"schema_version": 9}
