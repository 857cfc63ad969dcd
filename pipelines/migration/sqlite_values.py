"""Values of SQLite, whose columns hold values of any type, as typed frames and back.

A value that is not of its column's declared type becomes null and is named in `_ill_typed`, so that the
validate stage quarantines the record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import polars as pl

from pipelines.migration.schema import Column

_DATETIME_FORMS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f")


def text_or_bytes(raw: bytes) -> str | bytes:
    """Text that is not UTF-8 stays bytes, which no text column takes."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def frame_of(columns: Sequence[Column], rows: Sequence[Sequence[Any]]) -> pl.DataFrame:
    """The rows in their columns' types, and `_ill_typed`."""
    typed, ill = {}, []
    by_column = zip(*rows, strict=True) if rows else [()] * len(columns)
    for column, values in zip(columns, by_column, strict=True):
        typed[column.name], is_ill = _typed(column, values)
        if is_ill is not None and is_ill.any():
            ill.append(pl.when(pl.lit(is_ill)).then(pl.lit(column.name)))
    frame = pl.DataFrame(typed)
    if not ill:
        return frame.with_columns(pl.lit(None, pl.String).alias("_ill_typed"))
    names = pl.concat_str(ill, separator=",", ignore_nulls=True)
    return frame.with_columns(pl.when(names != "").then(names).alias("_ill_typed"))


def stored_rows(frame: pl.DataFrame) -> Iterator[tuple[Any, ...]]:
    """The rows of a frame as SQLite keeps them: moments and dates as text, booleans as numbers."""
    return zip(*(_stored_form(series).to_list() for series in frame), strict=True)


def _typed(column: Column, values: Sequence[Any]) -> tuple[pl.Series, pl.Series | None]:
    """The values in the column's type, and a mask of those that are not of it, where there may be any."""
    is_of_type, store = _STORED.get(column.kind, (str, pl.String()))
    read = _READ.get(column.kind)
    try:
        raw = pl.Series(column.name, values, dtype=store, strict=True)
        if read is None:
            return raw, None
    except (TypeError, OverflowError, pl.exceptions.PolarsError):
        kept = [value if isinstance(value, is_of_type) else None for value in values]
        kept = [None if isinstance(value, int) and not -(2**63) <= value < 2**63 else value for value in kept]
        if column.kind == "decimal":
            kept = [_decimal(value) for value in kept]
        raw = pl.Series(column.name, kept, dtype=store)
    series = read(raw).alias(column.name) if read else raw
    given = pl.Series([value is not None for value in values], dtype=pl.Boolean)
    return series, given & series.is_null()


def _decimal(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else repr(value)


_STORED: dict[str, tuple[type | tuple[type, ...], pl.DataType]] = {
    "integer": (int, pl.Int64()),
    "boolean": (int, pl.Int64()),
    "float": ((int, float), pl.Float64()),
    "decimal": ((int, float, str), pl.String()),
    "binary": (bytes, pl.Binary()),
}


def _boolean(raw: pl.Series) -> pl.Series:
    return raw.replace_strict({0: False, 1: True}, default=None, return_dtype=pl.Boolean())


def moment_of(raw: pl.Series) -> pl.Series:
    """Text as naive moments, in either of the forms in which programs write them."""
    value = pl.col(raw.name)
    first, *others = [value.str.to_datetime(form, strict=False, time_unit="us") for form in _DATETIME_FORMS]
    moments = raw.to_frame().select(first).to_series()
    if moments.null_count() == raw.null_count():
        return moments
    return raw.to_frame().select(pl.coalesce(first, *others)).to_series()


def _date(raw: pl.Series) -> pl.Series:
    return raw.str.to_date("%Y-%m-%d", strict=False)


_READ: dict[str, Callable[[pl.Series], pl.Series]] = {
    "boolean": _boolean,
    "datetime": moment_of,
    "datetime_tz": lambda raw: moment_of(raw).dt.replace_time_zone("UTC"),
    "date": _date,
}


def _stored_form(series: pl.Series) -> pl.Series:
    if isinstance(series.dtype, pl.Datetime):
        return series.dt.to_string("%Y-%m-%d %H:%M:%S%.6f")
    if series.dtype == pl.Date():
        return series.dt.to_string("%Y-%m-%d")
    return series.cast(pl.Int64) if series.dtype == pl.Boolean() else series
