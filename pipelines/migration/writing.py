"""Writing: one chunk's records and children into the target's tables, after the conflict policy.

Each function answers with what it did, a row for each row that it looked at (`worktables.WRITTEN`):
inserts, updates with the row as it was before, and what was left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from pipelines.migration.keys import key_frame, key_text, key_value
from pipelines.migration.plan import ChildPlan, EntityPlan
from pipelines.migration.rowhash import row_hashes
from pipelines.migration.schema import Table
from pipelines.migration.target import TargetTransaction
from pipelines.migration.worktables import WRITTEN

_OUTCOME = {"insert": "inserted", "update": "updated", "unchanged": "unchanged", "skip": "skipped"}


def write_records(transaction: TargetTransaction, entity: EntityPlan, frame: pl.DataFrame) -> pl.DataFrame:
    """Insert new records; skip, update or leave those that are there. A row that was matched and is
    gone since is inserted."""
    rows, table = _rows_of(entity, frame), entity.target
    hashes = _hashes(table, rows)
    keys = frame["_record"].cast(pl.String)
    ops, before = _decided(transaction, entity, rows, keys, hashes, frame)
    transaction.insert(table, rows.filter(ops == "insert"))
    transaction.update(table, rows.filter(ops == "update"))
    hashed = pl.select(pl.when(ops != "skip").then(hashes)).to_series()
    return _written(
        transaction,
        table,
        rows.columns,
        keys=frame["_record"],
        ops=ops,
        row_hash=hashed,
        record=keys,
        source=frame["_key"],
        before=before,
    )


def _decided(
    transaction: TargetTransaction,
    entity: EntityPlan,
    rows: pl.DataFrame,
    keys: pl.Series,
    hashes: pl.Series,
    frame: pl.DataFrame,
) -> tuple[pl.Series, pl.Series]:
    """What to do with each record, and the image of those to be updated."""
    nothing, existing = pl.Series([None] * rows.height, dtype=pl.String), frame["_existing"]
    if not existing.any():
        return pl.Series(["insert"] * rows.height, dtype=pl.String), nothing
    images = transaction.images(entity.target, frame.filter(existing)["_record"].to_list())
    is_there = existing & keys.is_in([*images])
    if entity.policy == "skip":
        return pl.select(
            pl.when(is_there).then(pl.lit("skip")).otherwise(pl.lit("insert"))
        ).to_series(), nothing
    now = transaction.rows(
        entity.target,
        rows.columns,
        of=entity.target.key,
        among=frame.filter(is_there)["_record"].to_list(),
    )
    there = now.select(key_text(entity.target_key)).to_series()
    same = dict(zip(there, _hashes(entity.target, now), strict=True))
    current = pl.Series([same.get(key) for key in keys], dtype=pl.String)
    ops = pl.select(
        pl.when(~is_there)
        .then(pl.lit("insert"))
        .when(current == hashes)
        .then(pl.lit("unchanged"))
        .otherwise(pl.lit("update"))
    ).to_series()
    before = [images[key] if op == "update" else None for key, op in zip(keys, ops, strict=True)]
    return ops, pl.Series(before, dtype=pl.String)


def write_children(
    transaction: TargetTransaction,
    child: ChildPlan,
    frame: pl.DataFrame,
    parents: pl.DataFrame,
    first: int,
) -> pl.DataFrame:
    """Insert the children of the records that were written; those of a record that was there before are
    left when they are the same, and replaced whole when they are not. Keys that are counted go on above
    `first`."""
    table = child.table
    rows = _family_rows(child, frame, pl.col("_child") + first)
    ops = parents.select("record_key", pl.col("op").alias("_op"))
    there = ops.filter(pl.col("_op").is_in(["update", "unchanged"]))["record_key"]
    written = ops.filter(pl.col("_op") != "skip")["record_key"]
    record = key_text(child.table.pick(child.parent))
    rows = rows.filter(record.is_in(written.implode()))
    parts = []
    if not there.is_empty():
        old = _children_of(transaction, child, rows.columns, frame["_record"].dtype, there)
        same = _same_families(child, old, rows, _counted(child, frame))
        kept = old.filter(record.is_in(same.implode()))
        dropped = old.filter(~record.is_in(same.implode()))
        rows = rows.filter(~record.is_in(same.implode()))
        parts.append(_family(transaction, child, kept, "unchanged"))
        keys = dropped.select(key_value(table.key_columns)).to_series()
        images = transaction.images(table, keys.to_list())
        before = pl.Series([images[text] for text in keys.cast(pl.String)], dtype=pl.String)
        parts.append(_family(transaction, child, dropped, "delete", before=before))
        transaction.delete(table, keys.to_list())
    transaction.insert(table, rows)
    parts.append(_family(transaction, child, rows, "insert"))
    return pl.concat(parts)


def outcomes_of(entity: EntityPlan, written: dict[str, pl.DataFrame]) -> pl.Series:
    """What became of each record of a chunk, in its order; a record whose children changed is updated."""
    records = written[entity.target.name]
    changed = [
        written[child.table.name].filter(pl.col("op") != "unchanged")["record_key"]
        for child in entity.children.values()
    ]
    outcome = pl.col("op").replace_strict(_OUTCOME, return_dtype=pl.String)
    if changed:
        touched = pl.col("record_key").is_in(pl.concat(changed).unique().implode())
        outcome = pl.when((pl.col("op") == "unchanged") & touched).then(pl.lit("updated")).otherwise(outcome)
    return records.select(outcome.alias("_outcome")).to_series()


def foresee(
    transaction: TargetTransaction, entity: EntityPlan, frame: pl.DataFrame, children: dict[str, pl.DataFrame]
) -> pl.Series:
    """What would become of each record if it were written now, found out by reading alone."""
    rows = _rows_of(entity, frame)
    keys = frame["_record"].cast(pl.String)
    ops, _ = _decided(transaction, entity, rows, keys, _hashes(entity.target, rows), frame)
    made = {entity.target.name: pl.DataFrame([keys.alias("record_key"), ops.alias("op")])}
    there = keys.filter(ops.is_in(["update", "unchanged"]))
    for name, family in children.items():
        child = entity.children[name]
        record = key_text(child.table.pick(child.parent))
        new = _family_rows(child, family, pl.lit(0)).filter(record.is_in(there.implode()))
        old = _children_of(transaction, child, new.columns, frame["_record"].dtype, there)
        parents = pl.concat([side.select(record).to_series() for side in (old, new)]).unique()
        same = _same_families(child, old, new, _counted(child, family))
        changed = parents.filter(~parents.is_in(same.implode()))
        made[child.table.name] = changed.to_frame("record_key").with_columns(pl.lit("insert").alias("op"))
    return outcomes_of(entity, made)


def _rows_of(entity: EntityPlan, frame: pl.DataFrame) -> pl.DataFrame:
    """The rows as the target has them; a key that is one column is in `_record`, also where no field is."""
    values = {name: pl.col(f"t:{name}").alias(name) for name in entity.fields}
    if len(entity.target.key) == 1:
        values |= {name: pl.col("_record").alias(name) for name in entity.target.key}
    return frame.select(*values.values())


def _family_rows(child: ChildPlan, frame: pl.DataFrame, number: pl.Expr) -> pl.DataFrame:
    """The rows of children: what was made, their record's key, and their own or its number."""
    record = key_frame(child.table.pick(child.parent), frame["_record"])
    counted = [number.alias(name) for name in _counted(child, frame)]
    return frame.select(*counted, *record, *(pl.col(f"t:{name}").alias(name) for name in _made(frame)))


def _made(frame: pl.DataFrame) -> list[str]:
    return [name[2:] for name in frame.columns if name.startswith("t:")]


def _counted(child: ChildPlan, frame: pl.DataFrame) -> tuple[str, ...]:
    """The key's column where nothing gives the key."""
    return () if child.has_given_key(_made(frame)) else child.table.key


def _children_of(
    transaction: TargetTransaction, child: ChildPlan, columns: list[str], of: pl.DataType, records: pl.Series
) -> pl.DataFrame:
    return transaction.rows(child.table, columns, of=child.parent, among=records.cast(of).to_list())


def _same_families(
    child: ChildPlan, old: pl.DataFrame, new: pl.DataFrame, counted: tuple[str, ...]
) -> pl.Series:
    """The records, as text, whose children are the same rows, counted keys and order aside."""
    families, record = [], key_text(child.table.pick(child.parent)).alias("record")
    for rows in (old, new):
        hashes = _hashes(child.table, rows.drop(counted))
        family = rows.select(record, hashes.alias("hash")).group_by("record")
        families.append(family.agg(pl.col("hash").sort()))
    return families[0].join(families[1], on=["record", "hash"], how="semi")["record"]


def _family(
    transaction: TargetTransaction,
    child: ChildPlan,
    rows: pl.DataFrame,
    op: str,
    *,
    before: pl.Series | None = None,
) -> pl.DataFrame:
    nothing = pl.Series([None] * rows.height, dtype=pl.String)
    return _written(
        transaction,
        child.table,
        rows.columns,
        keys=rows.select(key_value(child.table.key_columns)).to_series(),
        ops=pl.Series([op] * rows.height, dtype=pl.String),
        row_hash=nothing if op == "delete" else _hashes(child.table, rows),
        record=rows.select(key_text(child.table.pick(child.parent))).to_series(),
        source=nothing,
        before=nothing if before is None else before,
    )


def _written(
    transaction: TargetTransaction,
    table: Table,
    columns: Sequence[str],
    *,
    keys: pl.Series,
    ops: pl.Series,
    row_hash: pl.Series,
    record: pl.Series,
    source: pl.Series,
    before: pl.Series,
) -> pl.DataFrame:
    """For each row what was meant (by transform) and, where that may be something else, what stands there now
    (defaults, triggers)."""
    read_back = ["insert", "update", "unchanged"]
    if (ops == "insert").any() and transaction.keeps_inserts(table, columns):
        read_back.remove("insert")
    touched = keys.filter(ops.is_in(read_back))
    after = transaction.after_hashes(table, touched.to_list()) if touched.len() else {}
    texts = keys.cast(pl.String)
    made = [
        texts,
        record,
        source,
        ops,
        row_hash,
        pl.Series([after.get(k) for k in texts], dtype=pl.String),
    ]
    return pl.DataFrame(
        [series.alias(name) for name, series in zip(WRITTEN, [*made, before], strict=True)],
        schema=WRITTEN,
    )


def _hashes(table: Table, rows: pl.DataFrame) -> pl.Series:
    return row_hashes(rows, table.pick(sorted({*rows.columns} & {*table.columns})))
