"""Row hashes: of a canonical encoding, the same for equal rows whichever side they come from.

They are SHA-256 cut to 128 bits, for they are kept for every row. Each value is written as a type tag,
its length in bytes and its text, so that no two rows share an encoding ("12" and "3" are not "1" and
"23"). Moments are microseconds in UTC, decimals lose trailing zeros, JSON has sorted keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

import orjson
import polars as pl
import polars_hash as plh

from eventsourcing.canonical import comparable
from pipelines.migration.schema import Column

_TAGS = {"integer": "i", "boolean": "b", "float": "f", "decimal": "d", "date": "D", "binary": "x"}


def row_hashes(frame: pl.DataFrame, columns: Sequence[Column]) -> pl.Series:
    """The hash of each row over these columns, which the frame holds under their names.

    A row with a value that its column's type cannot carry, named in `_ill_typed`, has the empty text for a
    hash, which no row that was meant has.
    """
    if frame.is_empty() or not columns:
        return pl.Series("row_hash", [""] * frame.height, dtype=pl.String)
    normal = frame.with_columns(
        _normal(frame[column.name], column) for column in columns if column.kind in ("json", "decimal")
    )
    parts = [part for column in columns for part in _encoded(frame, column)]
    encoded = normal.select(pl.concat_str(parts).alias("row_hash"))
    if "_ill_typed" in frame.columns and frame["_ill_typed"].null_count() < frame.height:
        names = [column.name for column in columns]
        is_ill = pl.col("_ill_typed").str.split(",").list.set_intersection(names).list.len() > 0
        encoded = encoded.with_columns(frame.select(is_ill.fill_null(value=False).alias("is_ill")))
        encoded = encoded.select(pl.when(~pl.col("is_ill")).then("row_hash").alias("row_hash"))
    digest = plh.col("row_hash").chash.sha2_256().str.head(32)
    return encoded.select(digest.fill_null("")).to_series()


def _encoded(frame: pl.DataFrame, column: Column) -> list[pl.Expr]:
    """The parts that each value of a column has in the encoding; one part where there are nulls."""
    text = _text(column)
    tag = _TAGS.get(column.kind, "m" if column.kind.startswith("datetime") else "s")
    parts = [pl.lit(tag), text.str.len_bytes(), pl.lit(":"), text]
    return [pl.concat_str(parts).fill_null("n;")] if frame[column.name].null_count() else parts


def _text(column: Column) -> pl.Expr:
    value = pl.col(column.name)
    if column.kind.startswith("datetime"):
        return value.dt.epoch("us").cast(pl.String)
    if column.kind == "binary":
        return value.bin.encode("hex")
    if column.kind == "uuid":
        return value.str.to_lowercase()
    return value.cast(pl.String)


def _normal(series: pl.Series, column: Column) -> pl.Series:
    normal = _normal_json if column.kind == "json" else _normal_decimal
    texts = [None if text is None else normal(text) for text in series]
    return pl.Series(column.name, texts, dtype=pl.String)


def _normal_json(text: str) -> str:
    """What is no JSON stays what it is: the target refuses it, and the record goes to quarantine."""
    try:
        return comparable(orjson.loads(text)).decode()
    except orjson.JSONDecodeError:
        return text


def _normal_decimal(text: str) -> str:
    try:
        return f"{Decimal(text).normalize():f}"
    except InvalidOperation:
        return text
