"""Matching: which records are in the target already, decided once, before anything is written.

A record is matched by its natural key, as the target compares it. Under `skip` and `update` it takes the
key of the row that it matched, so that references and children follow; under `rename` it takes the first
free name `ann_2`, `ann_3` … Whatever else of a record is unique and taken by another row of the target
is marked `_taken:column`, which the validate stage quarantines as a `conflict`.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from pipelines.migration.plan import EntityPlan
from pipelines.migration.schema import Unique
from pipelines.migration.target import TargetTransaction

_MOST_NAMES = 100
"""How many names are tried for one record, before it is quarantined."""


def match_existing(transaction: TargetTransaction, entity: EntityPlan, frame: pl.DataFrame) -> pl.DataFrame:
    """Make `_existing` true for records that are in the target, and add `_taken:` marks; give matched
    records their row's key, or renamed ones their new name."""
    natural = _natural(entity)
    frame = _found(transaction, entity, frame, natural)
    if entity.policy == "rename":
        frame = _renamed(transaction, entity, frame, natural)
        marks = [pl.col("_match").is_not_null().alias(f"_taken:{natural.columns[0]}")]
        frame = frame.with_columns(*marks, pl.lit(value=False).alias("_existing"))
    else:
        record = pl.coalesce("_match", "_record")
        keys = [record.alias("_record")]
        if entity.target_key in entity.fields:
            keys.append(record.alias(f"t:{entity.target_key}"))
        free = pl.lit(value=False).alias(f"_taken:{natural.columns[0]}")
        frame = frame.with_columns(*keys, pl.col("_match").is_not_null().alias("_existing"), free)
    for unique in compared(entity):
        if unique != natural:
            frame = _taken(transaction, entity, frame.drop("_match"), unique)
    return frame.drop("_match")


def compared(entity: EntityPlan) -> Iterator[Unique]:
    """The single columns that are unique in the target and filled by the mapping."""
    return (unique for unique in entity.unique if len(unique.columns) == 1)


def _natural(entity: EntityPlan) -> Unique:
    return next(unique for unique in compared(entity) if unique.columns == (entity.mapping.natural_key,))


def _found(
    transaction: TargetTransaction, entity: EntityPlan, frame: pl.DataFrame, unique: Unique
) -> pl.DataFrame:
    """The frame and `_match`, the key of the row of the target that has the same value."""
    (name,) = unique.columns
    values = frame.select(pl.col(f"t:{name}").alias(name))
    there = transaction.find(entity.target, unique, values).select(
        _comparable(pl.col(name), unique).alias("_same"), pl.col("_found").alias("_match")
    )
    there = there.unique("_same", keep="first", maintain_order=True)
    same = frame.with_columns(_comparable(pl.col(f"t:{name}"), unique).alias("_same"))
    return same.join(there, on="_same", how="left", maintain_order="left").drop("_same")


def _comparable(value: pl.Expr, unique: Unique) -> pl.Expr:
    text = value.cast(pl.String)
    return text.str.to_lowercase() if unique.folds_case else text


def _taken(
    transaction: TargetTransaction, entity: EntityPlan, frame: pl.DataFrame, unique: Unique
) -> pl.DataFrame:
    found = _found(transaction, entity, frame, unique)
    match = pl.col("_match")
    other = match.is_not_null() & (~pl.col("_existing") | (match != pl.col("_record")))
    return found.with_columns(other.fill_null(value=False).alias(f"_taken:{unique.columns[0]}"))


def _renamed(
    transaction: TargetTransaction, entity: EntityPlan, frame: pl.DataFrame, natural: Unique
) -> pl.DataFrame:
    """New names for the records whose name is taken, as far as free ones were found."""
    column = f"t:{natural.columns[0]}"
    original = pl.col("_original")
    frame = frame.with_columns(pl.col(column).alias("_original"))
    for number in range(2, _MOST_NAMES + 1):
        if not frame["_match"].is_not_null().any():
            break
        candidate = pl.concat_str([original, pl.lit(f"_{number}")])
        renamed = frame.with_columns(
            pl.when(pl.col("_match").is_not_null()).then(candidate).otherwise(pl.col(column)).alias(column)
        )
        frame = _found(transaction, entity, renamed.drop("_match"), natural)
        own = pl.col("_match").is_null() & pl.col(column).is_duplicated()
        clash = own & (pl.col(column) == candidate)
        frame = frame.with_columns(
            pl.when(clash).then(pl.col("_record")).otherwise(pl.col("_match")).alias("_match")
        )
    return frame.drop("_original")
