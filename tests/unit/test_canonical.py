"""Canonical JSON: one encoding, comparable and hashable; conformance holds the storages against it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventsourcing import InvalidEventError
from eventsourcing.canonical import comparable, decode, encode, state_hash, utc
from tests.factories import NOON

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=12,
)


@given(values)
def test_every_json_value_survives_encoding(value: Any) -> None:
    assert decode(encode(value)) == value
    assert json.loads(encode(value)) == value


@given(st.dictionaries(texts, values, max_size=5))
def test_the_order_of_keys_does_not_matter_to_a_comparison(value: dict[str, Any]) -> None:
    turned = dict(reversed(value.items()))
    assert comparable(value) == comparable(turned)
    assert state_hash(value) == state_hash(turned)
    assert encode(turned) == encode(dict(turned.items()))


def test_other_values_compare_and_hash_differently() -> None:
    different: list[Any] = [1, 1.0, "1", True, None, [], {}, [1], {"a": 1}, {"a": None}]
    assert len({comparable(value) for value in different}) == len(different)
    assert len({state_hash(value) for value in different}) == len(different)


def test_what_has_no_json_form_is_refused_by_a_comparison_too() -> None:
    with pytest.raises(InvalidEventError, match="64 bits") as caught:
        state_hash({"a": [2**64]}, field="body")
    assert caught.value.field == "body.a[0]"


def test_a_hash_is_sha256_of_the_sorted_form() -> None:
    assert state_hash({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


@given(
    st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)),  # noqa: DTZ001 - made aware below
    st.integers(-14 * 60, 14 * 60),
)
def test_a_moment_is_written_in_utc_wherever_it_was_taken(moment: datetime, minutes: int) -> None:
    local = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    written = decode(encode(local))
    assert written.endswith("Z")
    assert datetime.fromisoformat(written) == local == utc(local)


def test_a_moment_outside_the_years_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 9999"):
        utc(datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))))


def test_an_error_names_the_field_it_was_asked_about() -> None:
    with pytest.raises(InvalidEventError) as caught:
        encode({"a": [{"b": float("inf")}]}, field="metadata")
    assert caught.value.field == "metadata.a[0].b"


def test_nothing_and_escapes_are_not_taken_for_what_they_resemble() -> None:
    for value in ({"null": None}, ["null", "\\u0000", "\\\\u0000"], {"\\u0000": 1}):
        assert decode(encode(value)) == value


def test_objects_are_refused_rather_than_guessed_at() -> None:
    @dataclass
    class Point:
        x: float

    for value in (Point(1.0), {1, 2}, 1j, NOON.timetz(), object):
        with pytest.raises(InvalidEventError):
            encode({"x": value})


def test_circles_are_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(InvalidEventError):
        encode(circle)
