"""Standing: which rows of a run stand in the target as it left them."""

from __future__ import annotations

import polars as pl

from pipelines.migration.keys import key_text, key_values
from pipelines.migration.rowhash import row_hashes
from pipelines.migration.schema import Table, reflect_tables
from pipelines.migration.target import TargetTransaction


def standing(transaction: TargetTransaction, table: Table, written: pl.DataFrame) -> dict[str, bool]:
    """Of the rows of a frame (`worktables.WRITTEN`) that are in the table now: is it as the run left it?

    By key as text. A row whose columns are others now, because somebody added one, is not as it was.
    """
    is_as_meant = pl.col("after_hash").is_null()
    as_meant, as_read = written.filter(is_as_meant), written.filter(~is_as_meant)
    keys = key_values(table.key_columns, as_read["target_key"])
    now = transaction.after_hashes(table, keys)
    left = dict(zip(as_read["target_key"], as_read["after_hash"], strict=True))
    if as_meant.height:
        now |= _hashes_now(transaction, table, as_meant["target_key"])
        left |= dict(zip(as_meant["target_key"], as_meant["row_hash"], strict=True))
    return {key: now[key] == digest for key, digest in left.items() if key in now}


def _hashes_now(transaction: TargetTransaction, table: Table, keys: pl.Series) -> dict[str, str]:
    """The hashes of rows over all columns that can be written, as `keeps_inserts` asks for them."""
    there = reflect_tables(transaction.connection, {table.name})[table.name]
    names = sorted(name for name, column in there.columns.items() if not column.is_computed)
    found = transaction.rows(there, names, of=table.key, among=key_values(table.key_columns, keys))
    hashes = row_hashes(found, there.pick(names))
    return dict(zip(found.select(key_text(there.pick(table.key))).to_series(), hashes, strict=True))
