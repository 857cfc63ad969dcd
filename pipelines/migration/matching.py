"""Matching: which records are in the target already, decided once, before anything is written.

A record is matched by its natural key, as the target compares it. Under `skip` and `update` it takes the
key of the row that it matched, so that references and children follow; under `rename` it takes the first
free name `ann_2`, `ann_3` … in the last column of its natural key. Whatever else of a record is unique and
taken by another row of the target is marked `_taken:columns`, which the validate stage quarantines as a
`conflict`.
"""

from __future__ import annotations

import polars as pl

from pipelines.migration.keys import are_comparable, key_frame, key_text, key_value, listed
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
        marks = [pl.col("_match").is_not_null().alias(_mark(natural))]
        frame = frame.with_columns(*marks, pl.lit(value=False).alias("_existing"))
        if {*natural.columns} & {*entity.target.key}:
            frame = frame.with_columns(key_value(entity.target_key, prefix="t:").alias("_record"))
    else:
        frame = frame.with_columns(
            pl.coalesce("_match", "_record").alias("_record"),
            pl.col("_match").is_not_null().alias("_existing"),
            pl.lit(value=False).alias(_mark(natural)),
        )
        frame = _with_key(entity, frame)
    for unique in entity.unique:
        if unique != natural and are_comparable(entity.target.pick(unique.columns)):
            frame = _taken(transaction, entity, frame.drop("_match"), unique)
    return frame.drop("_match")


def _with_key(entity: EntityPlan, frame: pl.DataFrame) -> pl.DataFrame:
    """The key's own columns, where fields give them, as the key has them now."""
    mapped = [name for name in entity.target.key if name in entity.fields]
    if not mapped or not frame["_existing"].any():
        return frame
    columns = key_frame(entity.target_key, frame["_record"])
    matched = pl.when("_existing")
    return frame.with_columns(
        matched.then(columns[name]).otherwise(f"t:{name}").alias(f"t:{name}") for name in mapped
    )


def _natural(entity: EntityPlan) -> Unique:
    return next(unique for unique in entity.unique if {*unique.columns} == {*entity.mapping.natural_key})


def _mark(unique: Unique) -> str:
    return f"_taken:{listed(unique.columns)}"


def _found(
    transaction: TargetTransaction, entity: EntityPlan, frame: pl.DataFrame, unique: Unique
) -> pl.DataFrame:
    """The frame and `_match`, the key of the row of the target that has the same values."""
    values = frame.select(pl.col(f"t:{name}").alias(name) for name in unique.columns)
    there = transaction.find(entity.target, unique, values)
    there = there.select(
        _comparable(there, entity, unique).alias("_same"), pl.col("_found").alias("_match")
    ).unique("_same", keep="first", maintain_order=True)
    same = frame.with_columns(_comparable(values, entity, unique).alias("_same"))
    return same.join(there, on="_same", how="left", maintain_order="left").drop("_same")


def _comparable(values: pl.DataFrame, entity: EntityPlan, unique: Unique) -> pl.Series:
    """The values as one text, the same where the target finds them the same."""
    folded = values.with_columns(pl.col(name).str.to_lowercase() for name in unique.folded)
    return folded.select(key_text(entity.target.pick(unique.columns))).to_series()


def _taken(
    transaction: TargetTransaction, entity: EntityPlan, frame: pl.DataFrame, unique: Unique
) -> pl.DataFrame:
    found = _found(transaction, entity, frame, unique)
    match = pl.col("_match")
    other = match.is_not_null() & (~pl.col("_existing") | (match != pl.col("_record")))
    return found.with_columns(other.fill_null(value=False).alias(_mark(unique)))


def _renamed(
    transaction: TargetTransaction, entity: EntityPlan, frame: pl.DataFrame, natural: Unique
) -> pl.DataFrame:
    """New names for the records whose name is taken, as far as free ones were found."""
    name = entity.mapping.natural_key[-1]
    column, together = f"t:{name}", pl.struct(f"t:{other}" for other in natural.columns)
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
        own = pl.col("_match").is_null() & together.is_duplicated()
        clash = own & (pl.col(column) == candidate)
        frame = frame.with_columns(
            pl.when(clash).then(pl.col("_record")).otherwise(pl.col("_match")).alias("_match")
        )
    return frame.drop("_original")
