"""The columnar append: what a frame's rows become, repeated calls, and every fault with its row."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import polars as pl
import pytest

from eventsourcing import (
    BaseEvent,
    ConcurrencyError,
    DuplicateEventError,
    EventQuery,
    EventStore,
    InvalidEventError,
    RecordedEvent,
)
from eventsourcing.columnar import ROWS_AT_MOST, RowIds
from eventsourcing.frames import CHUNKS, Frames, append_manifest
from eventsourcing.storage.postgres import PostgresStorage

AWKWARD = {"path": "C:\\new\\t", "text": 'tab\t, newline\n, "quoted", é, 𝄞', "none": None, "empty": ""}


def frame(count: int, *, streams: int = 10_007, **columns: Any) -> pl.DataFrame:
    """Rows in an order that is not that of their streams' names."""
    numbers = range(count)
    plain = {
        "event_type": ["user.migrated"] * count,
        "aggregate_id": [f"user-{number * 7 % streams}" for number in numbers],
        "aggregate_type": ["user"] * count,
        "data": [f'{{"number":{number}}}' for number in numbers],
    }
    return pl.DataFrame({**plain, **columns}, strict=False)


async def everything(store: EventStore) -> list[RecordedEvent]:
    return [event async for event in store.read(EventQuery())]


async def test_rows_become_events_in_their_order(store: EventStore) -> None:
    correlation, cause, moment = uuid4(), uuid4(), datetime(2019, 5, 1, 12, 30, 0, 123456, tzinfo=UTC)
    ids = [uuid4() for _ in range(25)]
    rows = frame(
        25,
        event_id=[str(each) for each in ids],
        timestamp=[moment] * 25,
        correlation_id=[str(correlation)] * 25,
        causation_id=[cause.bytes] * 25,
        metadata=['{"by":"ann"}'] * 25,
    )
    manifest = await store.append_frame(rows, name="all columns", chunk_rows=10)
    events = await everything(store)
    assert [event.event_id for event in events] == ids
    assert [event.data for event in events] == [{"number": number} for number in range(25)]
    assert [event.aggregate_id for event in events] == rows["aggregate_id"].to_list()
    first = events[0]
    assert (first.event_version, first.event_type, first.aggregate_type) == (1, "user.migrated", "user")
    assert (first.timestamp, first.correlation_id, first.causation_id) == (moment, correlation, cause)
    assert first.metadata == {"by": "ann"}
    assert (manifest.rows, manifest.chunks, manifest.appended, manifest.found) == (25, 3, 25, 0)
    assert (manifest.first_position, manifest.last_position) == (first.position, events[-1].position)
    assert await append_manifest(store.storage, "all columns") == manifest


async def test_json_text_is_stored_as_it_says(store: EventStore) -> None:
    payloads = [AWKWARD, {"nested": {"list": [1, {"deep": True}], "number": 2**63}}, {}]
    await store.append_frame(
        frame(3, data=[json.dumps(payload, indent=1, ensure_ascii=False) for payload in payloads]),
        name="text",
    )
    assert [event.data for event in await everything(store)] == payloads


async def test_structs_are_stored_as_canonical_json(store: EventStore) -> None:
    rich = {
        "at": datetime(2024, 2, 29, 1, 2, 3, tzinfo=UTC),
        "on": date(2024, 2, 29),
        "price": Decimal("1.20"),
        "ratio": 0.5,
        "raw": b"ab",
    }
    await store.append_frame(frame(2, data=[AWKWARD, AWKWARD]), name="plain")
    await store.append_frame(frame(1, aggregate_id=["rich"], data=[rich]), name="rich")
    drafted = await store.append_event(
        BaseEvent(event_type="user.migrated", aggregate_id="draft", aggregate_type="user", data=rich)
    )
    events = await everything(store)
    assert [event.data for event in events[:2]] == [AWKWARD, AWKWARD]
    assert events[2].data == drafted.data


async def test_versions_go_on_in_streams_that_exist(store: EventStore) -> None:
    """New streams, then grown ones, then both: within a chunk and across chunks."""
    await store.append_frame(frame(30, streams=5), name="a", chunk_rows=7)
    await store.append_frame(frame(30, streams=9), name="b", chunk_rows=8)
    await store.append_frame(frame(10, aggregate_id=[f"fresh-{n}" for n in range(10)]), name="c")
    last: dict[str, int] = {}
    for event in await everything(store):
        last[event.aggregate_id] = last.get(event.aggregate_id, 0) + 1
        assert event.event_version == last[event.aggregate_id]
    assert sum(last.values()) == 70


async def test_repeating_a_call_appends_nothing(store: EventStore) -> None:
    first = await store.append_frame(frame(25), name="once", chunk_rows=10)
    again = await store.append_frame(frame(25), name="once", chunk_rows=10)
    assert (first.appended_now, again.appended_now, again.appended) == (25, 0, 25)
    assert (again.first_position, again.last_position) == (first.first_position, first.last_position)
    assert len(await everything(store)) == 25


async def test_a_call_that_broke_off_is_completed_by_the_next(store: EventStore) -> None:
    def breaking_off() -> Iterator[pl.DataFrame]:
        yield frame(25)[:20]
        raise RuntimeError("the source went away")

    with pytest.raises(RuntimeError, match="went away"):
        await store.append_frame(breaking_off(), name="resumed", chunk_rows=10)
    assert (await append_manifest(store.storage, "resumed")).completed_at is None
    manifest = await store.append_frame(frame(25), name="resumed", chunk_rows=10)
    assert manifest.appended == 25
    assert [event.data["number"] for event in await everything(store)] == list(range(25))


async def test_a_chunk_stored_before_its_entry_was_written_is_found(store: EventStore) -> None:
    """As after a crash between the two."""
    first = await store.append_frame(frame(20), name="crashed", chunk_rows=10)
    async with store.storage.transaction() as transaction:
        for key, _ in await transaction.scan(CHUNKS, prefix="crashed"):
            await transaction.delete(CHUNKS, key)
    again = await store.append_frame(frame(20), name="crashed", chunk_rows=10)
    assert (again.appended, again.found) == (0, 20)
    assert len(await everything(store)) == first.appended


async def test_a_chunk_noted_by_an_older_version_is_found(store: EventStore) -> None:
    """Its digest cannot be compared; the events themselves are."""
    await store.append_frame(frame(20), name="older", chunk_rows=10)
    async with store.storage.transaction() as transaction:
        for key, noted in [*await transaction.scan(CHUNKS, prefix="older")]:
            await transaction.put(CHUNKS, key, {**noted, "digest": "0" * 32})
    changed = pl.concat([frame(20)[:15], frame(20, data=["{}"] * 20)[15:]])
    with pytest.raises(DuplicateEventError):
        await store.append_frame(changed, name="older", chunk_rows=10)
    again = await store.append_frame(frame(20), name="older", chunk_rows=10)
    assert (again.rows, again.appended_now) == (20, 0)
    assert len(await everything(store)) == 20


async def test_streams_of_awkward_names_grow(store: EventStore) -> None:
    names = ["back\\slash", "\\N", 'ü "quoted"', "tab\\t"]
    for number in range(2):
        await store.append_frame(frame(4, aggregate_id=names), name=f"awkward {number}")
    events = await everything(store)
    assert sorted((event.aggregate_id, event.event_version) for event in events) == sorted(
        (name, version) for name in names for version in (1, 2)
    )


async def test_other_rows_under_the_same_name_are_refused(store: EventStore) -> None:
    await store.append_frame(frame(20), name="taken", chunk_rows=10)
    changed = pl.concat([frame(20)[:15], frame(20, data=["{}"] * 20)[15:]])
    with pytest.raises(InvalidEventError, match="'taken'") as caught:
        await store.append_frame(changed, name="taken", chunk_rows=10)
    assert caught.value.index == 10


async def test_a_named_version_must_be_the_next_one(store: EventStore) -> None:
    await store.append_frame(frame(3, event_version=[1, 0, 1]), name="right")
    with pytest.raises(ConcurrencyError) as caught:
        await store.append_frame(frame(2, event_version=[2, 3]), name="wrong")
    assert (caught.value.expected, caught.value.actual) == (2, 1)
    assert len(await everything(store)) == 3


async def test_an_event_stored_before_is_found_or_refused_by_its_content(store: EventStore) -> None:
    ids = [str(uuid4()) for _ in range(4)]
    await store.append_frame(frame(2, event_id=ids[:2]), name="first")
    manifest = await store.append_frame(frame(4, event_id=ids), name="more")
    assert (manifest.appended, manifest.found) == (2, 2)
    with pytest.raises(DuplicateEventError):
        await store.append_frame(frame(2, event_id=ids[:2], data=["{}", "{}"]), name="other")
    assert len(await everything(store)) == 4


async def test_frames_come_in_any_form(store: EventStore) -> None:
    class Arrow:
        """A table of another library."""

        def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
            return frame(3, aggregate_id=["a", "b", "c"]).__arrow_c_stream__(requested_schema)

    lazy = frame(3, aggregate_id=["d", "e", "f"]).lazy()
    pieces = [frame(1, aggregate_id=[name]) for name in "ghi"]
    forms: tuple[Frames, ...] = (Arrow(), lazy, pieces)
    for number, form in enumerate(forms):
        manifest = await store.append_frame(form, name=f"form {number}", chunk_rows=2)
        assert (manifest.rows, manifest.chunks) == (3, 2)
    assert "".join(event.aggregate_id for event in await everything(store)) == "abcdefghi"


async def test_progress_is_told_after_each_chunk(store: EventStore) -> None:
    told: list[int] = []
    await store.append_frame(
        frame(25), name="told", chunk_rows=10, on_chunk=lambda manifest: told.append(manifest.rows)
    )
    assert told == [10, 20, 25]


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("event_type", "User Migrated", "not an event type"),
        ("event_type", None, "is missing"),
        ("aggregate_id", "", "1 to 255"),
        ("aggregate_id", "x" * 256, "1 to 255"),
        ("aggregate_id", "a\nb", "control"),
        ("aggregate_type", None, "is missing"),
        ("event_id", "not-a-uuid", "not a UUID"),
        ("event_id", None, "is missing"),
        ("correlation_id", "12", "not a UUID"),
        ("event_version", -1, "not a version"),
        ("timestamp", "yesterday", "not a moment"),
        ("timestamp", None, "is missing"),
        ("data", "{", "not JSON"),
        ("data", "[1]", "must be an object"),
        ("data", '{"a": NaN}', "not JSON"),
        ("data", '{"a": "\\u0000"}', "NUL"),
        ("data", '{"a": "\\ud800"}', "not JSON"),
        ("data", '{"a": 123456789012345678901234567890}', "64 bits"),
        ("data", '{"a":' * 260 + "1" + "}" * 260, "nested deeper"),
        ("data", json.dumps({"a": "x" * 800_000}), "bytes encoded"),
        ("metadata", '"text"', "must be an object"),
    ],
)
async def test_a_fault_names_its_column_and_its_row(
    store: EventStore, column: str, value: object, reason: str
) -> None:
    sound: dict[str, Any] = {
        "event_id": [str(uuid4()) for _ in range(25)],
        "event_version": [0] * 25,
        "correlation_id": [str(uuid4())] * 25,
        "timestamp": ["2024-01-01T00:00:00Z"] * 25,
        "metadata": ["{}"] * 25,
    }
    rows = frame(25, **sound)
    rows[13, column] = value
    with pytest.raises(InvalidEventError, match=reason) as caught:
        await store.append_frame(rows, name="faulty", chunk_rows=10)
    assert (caught.value.index, (caught.value.field or "").partition(".")[0]) == (13, column)
    assert len(await everything(store)) == 10, "the chunk before stays, the faulty one is not stored"


async def test_columns_must_be_those_of_events(store: EventStore) -> None:
    with pytest.raises(InvalidEventError, match="position: not a column"):
        await store.append_frame(frame(1, position=[1]), name="unknown")
    with pytest.raises(InvalidEventError, match="aggregate_type: the column is missing"):
        await store.append_frame(frame(1).drop("aggregate_type"), name="missing")
    with pytest.raises(InvalidEventError, match="aggregate_id: must be a column of text"):
        await store.append_frame(frame(1, aggregate_id=[1]), name="numbers")
    with pytest.raises(ValueError, match="name"):
        await store.append_frame(frame(1), name="")
    assert await everything(store) == []


def test_row_ids_end_where_the_number_of_a_row_has_no_room() -> None:
    ids = RowIds("long", datetime(2024, 1, 1, tzinfo=UTC))
    assert [len(each) for each in ids.of(ROWS_AT_MOST - 2, 2)] == [32, 32]
    with pytest.raises(InvalidEventError, match="at most"):
        ids.of(ROWS_AT_MOST - 1, 2)


async def test_an_empty_frame_appends_nothing(store: EventStore) -> None:
    manifest = await store.append_frame(frame(0), name="empty")
    assert (manifest.rows, manifest.first_position) == (0, None)
    assert manifest.completed_at is not None


async def test_appends_of_the_same_streams_in_opposite_orders_both_end(postgres: EventStore) -> None:
    """Rows inserted unsorted would deadlock."""
    storage = postgres.storage
    assert isinstance(storage, PostgresStorage)
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = await storage.pool.fetchval(deadlocks)  # other tests make some in this database
    rows = frame(2_000, streams=500)
    for pair in range(3):
        await asyncio.gather(
            postgres.append_frame(rows, name=f"up {pair}", chunk_rows=400),
            postgres.append_frame(rows.reverse(), name=f"down {pair}", chunk_rows=400),
        )
    events = await everything(postgres)
    assert len(events) == 12_000
    versions: dict[str, int] = {}
    for event in events:
        assert event.event_version == versions.get(event.aggregate_id, 0) + 1
        versions[event.aggregate_id] = event.event_version
    assert await storage.pool.fetchval(deadlocks) == before
