"""What a store takes and what it refuses, alike on every storage: encoding, sizes, names, moments."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest

from eventsourcing import EventStore, InvalidEventError
from eventsourcing.events import MAX_EVENT_BYTES
from tests.factories import NOON, draft


class Colour(Enum):
    RED = "red"


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


REFUSED = {
    "not a number": (float("nan"), "data.x"),
    "infinity": (float("inf"), "data.x"),
    "minus infinity": (float("-inf"), "data.x"),
    "a decimal that is no number": (Decimal("NaN"), "data"),
    "an infinite decimal": (Decimal("Infinity"), "data"),
    "NUL": ("a" + chr(0), "data.x"),
    "a lone surrogate": (chr(0xD800), "data.x"),
    "NUL in a key": ({"a" + chr(0): 1}, "data.x"),
    "a key that is no string": ({1: "one"}, "data.x"),
    "an integer beyond 64 bits": (2**64, "data.x"),
    "an integer below 64 bits": (-(2**63) - 1, "data.x"),
    "deep inside": ([{"y": [0, float("nan")]}], "data.x[0].y[1]"),
    "a set": ({1}, "data"),
    "an object": (object(), "data"),
    "a span of time": (timedelta(1), "data"),
    "nested too deep": (nested(2000), "data"),
    "nested far too deep": (nested(100_000), "data"),
    "a moment before the year one": (datetime.min.replace(tzinfo=timezone(timedelta(hours=1))), "data"),
}


async def test_what_json_or_postgresql_cannot_hold_is_refused_by_its_path(
    store: EventStore, subtests: pytest.Subtests
) -> None:
    for name, (value, field) in REFUSED.items():
        with subtests.test(name):
            with pytest.raises(InvalidEventError) as caught:
                await store.append_events([draft(), draft("order-2", data={"x": value})])
            assert (caught.value.index, caught.value.field) == (1, field)
            with pytest.raises(InvalidEventError) as caught:
                await store.append_event(draft(metadata={"x": value}))
            assert caught.value.field == field.replace("data", "metadata", 1)
    assert await store.horizon() == 0


EAST = timezone(timedelta(hours=5, minutes=30))
ENCODED = {
    "a decimal": (Decimal("10.500"), "10.500"),
    "a large decimal": (Decimal("1E+400"), "1E+400"),
    "a uuid": (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    "bytes": (b"\xff\x00", "/wA="),
    "a moment in utc": (NOON, "2024-05-01T12:00:00Z"),
    "a moment with microseconds": (NOON.replace(microsecond=1), "2024-05-01T12:00:00.000001Z"),
    "a moment elsewhere": (NOON.astimezone(EAST), "2024-05-01T12:00:00Z"),
    "a naive moment": (NOON.replace(tzinfo=None), "2024-05-01T12:00:00Z"),
    "a date": (date(2024, 5, 1), "2024-05-01"),
    "a time": (time(12, 30), "12:30:00"),
    "an enum": (Colour.RED, "red"),
    "a tuple": ((1, "two"), [1, "two"]),
    "the greatest integer": (2**64 - 1, 2**64 - 1),
    "the least integer": (-(2**63), -(2**63)),
    "a float": (0.1, 0.1),
    "a whole float": (1.0, 1.0),
    "a tiny float": (5e-324, 5e-324),
    "truth": (True, True),
    "nothing": (None, None),
    "text that looks like an escape": ("\\u0000", "\\u0000"),
    "text beyond the first plane": ("\U0001f600é\u2028", "\U0001f600é\u2028"),
    "control characters": ("\x01\t\n\x7f", "\x01\t\n\x7f"),
    "an empty object": ({}, {}),
    "keys in their order": ({"b": 1, "a": 2, "": 3}, {"b": 1, "a": 2, "": 3}),
    "nesting": (nested(100), nested(100)),
}


async def test_values_are_stored_in_canonical_json_on_every_storage(
    store: EventStore, subtests: pytest.Subtests
) -> None:
    for name, (value, expected) in ENCODED.items():
        with subtests.test(name):
            appended = await store.append_event(draft(data={"x": value}, metadata={"x": value}))
            read = await store.get_event(appended.event_id)
            assert read == appended
            for event in (appended, read):
                assert event.data["x"] == event.metadata["x"] == expected
                assert type(event.data["x"]) is type(expected)
            if isinstance(expected, dict):
                assert list(read.data["x"]) == list(expected)


async def test_an_event_of_exactly_the_largest_size_is_stored(store: EventStore) -> None:
    around = len(b'{"x":""}') + len(b"{}")
    stored = await store.append_event(draft(data={"x": "a" * (MAX_EVENT_BYTES - around)}))
    assert len(stored.data["x"]) == MAX_EVENT_BYTES - around
    assert await store.get_events("order-1") == [stored]


@pytest.mark.parametrize(
    "extra", [{"data": {"x": "a" * MAX_EVENT_BYTES}}, {"metadata": {"x": "é" * 400_000}}]
)
async def test_an_event_of_more_bytes_encoded_is_refused(store: EventStore, extra: dict[str, Any]) -> None:
    with pytest.raises(InvalidEventError) as caught:
        await store.append_event(draft(**extra))
    assert (caught.value.index, caught.value.field) == (0, "data")


async def test_the_longest_names_are_stored(store: EventStore) -> None:
    names = {"aggregate_id": "\U0001f600" * 255, "aggregate_type": "é" * 255, "event_type": "a" * 128}
    stored = await store.append_event(draft(**names))
    assert await store.get_events("\U0001f600" * 255) == [stored]
    assert await store.get_events_by_type("a" * 128) == [stored]


async def test_ids_that_differ_in_case_or_accents_are_different_aggregates(store: EventStore) -> None:
    for name in ("order", "Order", "órder", "o\u0301rder", " order", "order "):
        assert (await store.append_event(draft(name))).event_version == 1


@pytest.mark.parametrize(
    "moment",
    [
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(1582, 10, 10, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(2024, 5, 1, 12, 0, 0, 123456, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    ],
)
async def test_moments_are_kept_to_the_microsecond_from_the_first_year_to_the_last(
    store: EventStore, moment: datetime
) -> None:
    stored = await store.append_event(draft(timestamp=moment))
    [read] = await store.get_events("order-1")
    assert stored.timestamp == read.timestamp == moment
    assert [event async for event in store.get_all_events(moment, moment)] == [read]
