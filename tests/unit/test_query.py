"""EventQuery: a frozen value; conformance holds every storage against its `matches`."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from eventsourcing import EventQuery, EventType, InvalidEventError
from eventsourcing.storage.fragments import CONDITIONS, page
from tests.factories import NOON, draft, recorded

EVENT = recorded(
    draft(event_id=UUID(int=7), timestamp=NOON, correlation_id=UUID(int=1)), position=5, version=3
)


def test_an_empty_query_matches_everything() -> None:
    assert EventQuery().matches(EVENT)


@pytest.mark.parametrize(
    ("field", "holds", "fails"),
    [
        ("aggregate_id", "order-1", "order-10"),
        ("event_id", UUID(int=7), UUID(int=8)),
        ("event_types", ("order.paid", "order.placed"), ("order",)),
        ("aggregate_types", ("order",), ("orders",)),
        ("correlation_id", UUID(int=1), UUID(int=2)),
        ("from_timestamp", NOON, NOON.replace(microsecond=1)),
        ("to_timestamp", NOON, NOON.replace(hour=11)),
        ("from_version", 3, 4),
        ("to_version", 3, 2),
        ("after_position", 4, 5),
        ("to_position", 5, 4),
    ],
)
def test_each_condition_holds_to_its_bound_and_no_further(field: str, holds: Any, fails: Any) -> None:
    assert EventQuery(**{field: holds}).matches(EVENT)
    assert not EventQuery(**{field: fails}).matches(EVENT)
    assert not EventQuery(aggregate_id="order-1").where(**{field: fails}).matches(EVENT)


def test_an_event_without_a_correlation_matches_no_correlation() -> None:
    assert not EventQuery(correlation_id=UUID(int=1)).matches(recorded(draft(), position=1))


def test_a_query_is_frozen_and_changed_by_copy() -> None:
    query = EventQuery(aggregate_id="a", limit=5)
    with pytest.raises(FrozenInstanceError):
        query.limit = 6  # type: ignore[misc]  # the assignment is the case
    assert query.where(limit=None) == EventQuery(aggregate_id="a")
    assert query == EventQuery(aggregate_id="a", limit=5)


def test_naive_bounds_are_utc() -> None:
    query = EventQuery(from_timestamp=datetime(2024, 5, 1, 12))  # noqa: DTZ001 - a naive time is the case
    assert query.from_timestamp == NOON
    assert query.where().from_timestamp == datetime(2024, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize("text", ["a" + chr(0), chr(0xD800)])
def test_text_that_no_event_can_hold_is_refused_by_its_field(text: str) -> None:
    refused: list[dict[str, Any]] = [
        {"aggregate_id": text},
        {"event_types": ("order.placed", text)},
        {"aggregate_types": (text,)},
    ]
    for given in refused:
        with pytest.raises(InvalidEventError) as caught:
            EventQuery(**given)
        assert caught.value.field == next(iter(given))


def test_every_condition_of_a_query_has_a_fragment() -> None:
    shaping = {"limit", "backwards"}
    branching = {"event_types"}
    assert set(CONDITIONS) | shaping | branching == {field.name for field in fields(EventQuery)}


def test_values_are_parameters_never_text() -> None:
    spiteful = "'; DROP TABLE events; --"
    query = EventQuery(
        aggregate_id=spiteful, event_types=(spiteful, EventType.USER_MIGRATED), aggregate_types=(spiteful,)
    )
    sql, values = page(query, cursor=3, size=10)
    assert "DROP" not in sql
    assert values == [spiteful, [spiteful], 3, [spiteful, "user.migrated"], 10]
    sql, values = page(query.where(aggregate_id=None), cursor=3, size=10)
    assert "DROP" not in sql
    assert values == [[spiteful], 3, spiteful, "user.migrated", 10]
