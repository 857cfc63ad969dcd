"""Keys of several columns as one text: nothing is lost, and no two share one."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.migration.keys import PARTS, key_frame, key_text, key_value
from pipelines.migration.schema import Column, Kind, Table, Unique

MOMENTS = st.datetimes()
VALUES: dict[Kind, st.SearchStrategy[Any]] = {
    "integer": st.integers(-(2**63), 2**63 - 1),
    "text": st.text("%,25Caé \n\x00𝄞", max_size=8),
    "uuid": st.uuids().map(str),
    "boolean": st.booleans(),
    "date": st.dates(),
    "datetime": MOMENTS,
    "datetime_tz": MOMENTS.map(lambda moment: moment.replace(tzinfo=UTC)),
}


def columns_of(*kinds: Kind) -> list[Column]:
    return [Column(f"c{place}", kind, kind) for place, kind in enumerate(kinds)]


def frame_of(columns: list[Column], *keys: tuple[Any, ...]) -> pl.DataFrame:
    schema = {column.name: column.dtype for column in columns}
    return pl.DataFrame([*keys], schema=schema, orient="row")


def texts_of(columns: list[Column], *keys: tuple[Any, ...]) -> list[str]:
    texts: list[str] = frame_of(columns, *keys).select(key_text(columns)).to_series().to_list()
    return texts


KEYS = st.lists(st.sampled_from(sorted(VALUES)), min_size=2, max_size=4).flatmap(
    lambda kinds: st.tuples(st.just(kinds), st.tuples(*(VALUES[kind] for kind in kinds)))
)


def test_every_kind_of_a_part_is_tried() -> None:
    assert {*VALUES} == PARTS


@given(KEYS)
def test_the_columns_come_back_from_the_text(key: tuple[list[Kind], tuple[Any, ...]]) -> None:
    kinds, values = key
    columns = columns_of(*kinds)
    frame = frame_of(columns, values)
    assert key_frame(columns, frame.select(key_value(columns)).to_series()).equals(frame)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("1", "23"), ("12", "3")),
        (("a,b", "c"), ("a", "b,c")),
        (("a%2Cb", "c"), ("a,b", "c")),
        (("", "a"), ("a", "")),
        (("%", "2C"), ("%2C", "")),
    ],
)
def test_no_two_keys_share_a_text(one: tuple[str, str], other: tuple[str, str]) -> None:
    texts = texts_of(columns_of("text", "text"), one, other)
    assert texts[0] != texts[1]


def test_people_can_read_a_key() -> None:
    columns = columns_of("integer", "text", "date", "boolean", "datetime_tz")
    key = (17, "ann, of 100%", date(2024, 2, 1), True, datetime(2024, 2, 1, 12, tzinfo=UTC))
    assert texts_of(columns, key) == ["17,ann%2C of 100%25,2024-02-01,true,2024-02-01T12:00:00.000000Z"]


def test_a_key_with_a_null_is_null_and_one_column_is_its_own_value() -> None:
    pair, single = columns_of("text", "integer"), columns_of("integer")
    assert texts_of(pair, ("a", None)) == [None]
    assert frame_of(single, (5,)).select(key_value(single)).to_series().to_list() == [5]
    assert texts_of(columns_of("text"), ("a,b%",)) == ["a,b%"]


@pytest.mark.parametrize(("key", "expected"), [("id", ("id",)), (None, ()), (["id", "name"], ("id", "name"))])
def test_a_manifest_of_an_earlier_version_is_read(key: Any, expected: tuple[str, ...]) -> None:
    columns = {"id": Column("id", "integer", "integer"), "name": Column("name", "text", "text")}
    written = Table("people", columns, ("id",)).to_json()
    written |= {"key": key, "unique": [{"columns": ["name"], "folds_case": True}]}
    table = Table.from_json(written)
    assert table.key == expected
    assert table.unique == (Unique(("name",), ("name",)),)
