"""Keys: a key of any number of columns as one value, and back.

A key of one column is that column's value, and its text is the value's. A key of several columns is one
text: the texts of its parts in the key's order, joined by commas, in each of which `%` is written `%25` and a
comma `%2C`. So no two keys share a text ("1" and "23" are `1,23`, "12" and "3" are `12,3`), people can
read it, and a stream, a report and a work row hold it like any other key. A key with a part that is null
is null.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl

from pipelines.migration.schema import Column

PARTS = frozenset({"integer", "text", "uuid", "boolean", "date", "datetime", "datetime_tz"})
"""Kinds of columns that have one text in every database: a key of several columns is made of these."""

_MOMENT = "%Y-%m-%dT%H:%M:%S%.6f"


def are_comparable(columns: Sequence[Column]) -> bool:
    """Whether rows can be found by these columns together."""
    return len(columns) == 1 or all(column.kind in PARTS for column in columns)


def key_value(columns: Sequence[Column], *, prefix: str = "") -> pl.Expr:
    """The key of each row as frames hold it: the value of its one column, or the text of several."""
    if len(columns) == 1:
        return pl.col(prefix + columns[0].name)
    return pl.concat_str((_text(column, prefix + column.name) for column in columns), separator=",")


def key_text(columns: Sequence[Column], *, prefix: str = "") -> pl.Expr:
    """The key of each row as text."""
    return key_value(columns, prefix=prefix).cast(pl.String)


def key_dtype(columns: Sequence[Column]) -> pl.DataType:
    """The type of what `key_value` gives."""
    return columns[0].dtype if len(columns) == 1 else pl.String()


def key_values(columns: Sequence[Column], texts: pl.Series) -> list[Any]:
    """Texts of keys as `key_value` gives them."""
    is_number = [column.kind for column in columns] == ["integer"]
    return (texts.cast(pl.Int64) if is_number else texts).to_list()


def key_frame(columns: Sequence[Column], keys: Sequence[Any] | pl.Series) -> pl.DataFrame:
    """The columns of keys that `key_value` gave."""
    if len(columns) == 1:
        return pl.DataFrame({columns[0].name: keys})
    texts = pl.Series(keys, dtype=pl.String)
    parts = texts.str.split_exact(",", len(columns) - 1).struct.unnest()
    return parts.select(
        _read(column, pl.col(part)).alias(column.name)
        for column, part in zip(columns, parts.columns, strict=True)
    )


def listed(names: Iterable[str]) -> str:
    """The columns of a key in a message."""
    return ", ".join(names)


def _text(column: Column, name: str) -> pl.Expr:
    value = pl.col(name)
    match column.kind:
        case "text" | "uuid":
            escaped = value.str.replace_all("%", "%25", literal=True)
            return escaped.str.replace_all(",", "%2C", literal=True)
        case "datetime":
            return value.dt.to_string(_MOMENT)
        case "datetime_tz":
            return value.dt.to_string(_MOMENT + "Z")
    return value.cast(pl.String)


def _read(column: Column, text: pl.Expr) -> pl.Expr:
    match column.kind:
        case "text" | "uuid":
            return text.str.replace_all("%2C", ",", literal=True).str.replace_all("%25", "%", literal=True)
        case "datetime":
            return text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us")
        case "datetime_tz":
            moment = text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.fZ", time_unit="us")
            return moment.dt.replace_time_zone("UTC")
        case "date":
            return text.str.to_date("%Y-%m-%d")
        case "boolean":
            return text == "true"
    return text.cast(column.dtype)
