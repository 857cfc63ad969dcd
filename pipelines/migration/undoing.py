"""Undoing: one chunk of a run put back in one transaction, as far as nobody changed it since."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import polars as pl
import sqlalchemy as sa

from pipelines.migration.context import RunContext
from pipelines.migration.keys import key_values
from pipelines.migration.load import tables_of
from pipelines.migration.plan import EntityPlan
from pipelines.migration.schema import Table
from pipelines.migration.standing import standing
from pipelines.migration.target import Reference, TargetTransaction
from pipelines.migration.worktables import left, loaded_chunk, mark_chunk, records_left, written_by

Written = dict[str, pl.DataFrame]
Conflicts = dict[str, tuple[str, str]]
"""By record: `conflict` (left as it is) or `gone` (others deleted all of it), and the reason."""


def undo_chunk(
    run: RunContext,
    entity: EntityPlan,
    number: int,
    references: list[Reference],
    *,
    by: int,
    force: bool,
) -> tuple[pl.DataFrame, datetime]:
    """Put back what may be put back of a chunk, in the rollback of this number; the records that it took
    back (`target_key`, and `action`: deleted or restored), and when.

    When its transaction was committed before a crash, nothing is done twice: the same is returned. With
    `force` rows that others changed are put back as well, but never those that other rows refer to.
    """
    with run.target.transaction() as transaction:
        transaction.lock()
        connection = transaction.connection
        state = loaded_chunk(connection, run.migration_id, entity.name, number)
        assert state is not None, "only what is loaded is undone"
        written = written_by(connection, run.migration_id, entity.name, number)
        leftover = records_left(connection, run.migration_id, entity.name, number)
        if state.undone_by == by:
            at: datetime = state.undone_at
            if state.undone_since == by:
                done = migrated_records(entity, written) - {*leftover}
            else:
                done = {key for key, row in leftover.items() if row.state == "undone" and row.undone_by == by}
            return _actions(entity, written, done), at
        migrated = migrated_records(entity, written)
        if state.undone_by:
            migrated = {key for key, row in leftover.items() if row.state == "conflict"}
        conflicts = _conflicts(transaction, entity, _of(written, migrated), references, force=force)
        clean = migrated - {*conflicts}
        counts = _put_back(transaction, entity, _of(written, clean))
        at = datetime.now(UTC)
        _record_left(run, entity, number, connection, by, conflicts, clean & {*leftover})
        mark_chunk(
            connection,
            run.migration_id,
            entity.name,
            number,
            undone_by=by,
            undone_since=state.undone_since or by,
            undone_at=at,
            undone=counts,
        )
    return _actions(entity, written, clean), at


def migrated_records(entity: EntityPlan, written: Written) -> set[str]:
    """The records that the chunk migrated: also one that was there unchanged is taken back, by word."""
    records = written[entity.target.name]
    return {*records.filter(pl.col("op") != "skip")["record_key"]}


def _of(written: Written, records: set[str]) -> Written:
    wanted = pl.Series([*records], dtype=pl.String).implode()
    return {name: frame.filter(pl.col("record_key").is_in(wanted)) for name, frame in written.items()}


def _actions(entity: EntityPlan, written: Written, records: set[str]) -> pl.DataFrame:
    """In the order of loading."""
    wanted = pl.Series([*records], dtype=pl.String).implode()
    action = pl.when(pl.col("op") == "insert").then(pl.lit("deleted")).otherwise(pl.lit("restored"))
    own = written[entity.target.name].filter(pl.col("record_key").is_in(wanted))
    return own.select("target_key", action.alias("action"))


def _conflicts(
    transaction: TargetTransaction,
    entity: EntityPlan,
    written: Written,
    references: list[Reference],
    *,
    force: bool,
) -> Conflicts:
    """The records that others changed, deleted or refer to: the state each is left in, and why."""
    conflicts: Conflicts = {}
    there: set[str] = set()
    for table in tables_of(entity):
        for record, found in _changed_since(transaction, table, written[table.name], there):
            if not force:
                conflicts.setdefault(record, ("conflict", found))
    ours = {(name, key) for name, frame in written.items() for key in frame["target_key"]}
    inserted = written[entity.target.name].filter(pl.col("op") == "insert")
    for reference in references:
        columns, table = reference.to_key(entity.target), reference.table
        if columns is None:
            continue
        for record, own_key in transaction.referring(table, columns, _keys(entity.target, inserted)):
            if (table.name, own_key) not in ours:
                conflicts.setdefault(record, ("conflict", f"{table.name} {own_key} refers to it"))
    return {
        record: conflict if record in there else ("gone", conflict[1])
        for record, conflict in conflicts.items()
    }


def _changed_since(
    transaction: TargetTransaction, table: Table, written: pl.DataFrame, there: set[str]
) -> Iterator[tuple[str, str]]:
    """The records whose rows in this table are not as the run left them; adds those that have rows."""
    left_there = written.filter(pl.col("op").is_in(["insert", "update"]))
    now = standing(transaction, table, left_there)
    for record, key in left_there.select("record_key", "target_key").iter_rows():
        if key in now:
            there.add(record)
        if not now.get(key):
            how = "changed" if key in now else "deleted"
            yield record, f"{table.name} {key} was {how} by others"
    dropped = written.filter(pl.col("op") == "delete")
    reused = {*transaction.after_hashes(table, _keys(table, dropped))} - {*left_there["target_key"]}
    for record, key in dropped.select("record_key", "target_key").iter_rows():
        if key in reused:
            yield record, f"{table.name} {key} was taken by others"


def _put_back(transaction: TargetTransaction, entity: EntityPlan, written: Written) -> dict[str, Any]:
    """Children first; how many rows were deleted and restored, by table."""
    counts: dict[str, dict[str, int]] = {"deleted": {}, "restored": {}}
    tables = tables_of(entity)
    for table in reversed(tables):
        frame = written[table.name]
        inserted = frame.filter(pl.col("op") == "insert")
        counts["deleted"][table.name] = transaction.delete(table, _keys(table, inserted))
        _restore(transaction, table, frame.filter(pl.col("op") == "update"))
    for table in tables:
        dropped = written[table.name].filter(pl.col("op") == "delete")
        transaction.bring_back(table, dropped["before"].to_list())
        updated = written[table.name].filter(pl.col("op") == "update")
        counts["restored"][table.name] = updated.height + dropped.height
    return counts


def _restore(transaction: TargetTransaction, table: Table, updated: pl.DataFrame) -> None:
    """Rows that others deleted meanwhile, which only `force` gets here, are inserted again."""
    there = pl.Series([*transaction.after_hashes(table, _keys(table, updated))], dtype=pl.String).implode()
    stands = pl.col("target_key").is_in(there)
    transaction.restore(table, updated.filter(stands)["before"].to_list())
    transaction.bring_back(table, updated.filter(~stands)["before"].to_list())


def _record_left(
    run: RunContext,
    entity: EntityPlan,
    number: int,
    connection: sa.Connection,
    by: int,
    conflicts: Conflicts,
    settled: set[str],
) -> None:
    """Keep which records were left and why, and which of those left before are taken back now."""
    states = conflicts | dict.fromkeys(settled, ("undone", ""))
    if not states:
        return
    place = {"migration_id": run.migration_id, "entity": entity.name, "number": number}
    same = sa.and_(*(left.c[name] == value for name, value in place.items()))
    connection.execute(sa.delete(left).where(same, left.c.record_key.in_([*states])))
    rows = [
        {**place, "record_key": record, "state": state, "reason": reason, "undone_by": by}
        for record, (state, reason) in states.items()
    ]
    connection.execute(sa.insert(left), rows)


def _keys(table: Table, rows: pl.DataFrame) -> list[Any]:
    return key_values(table.key_columns, rows["target_key"])
