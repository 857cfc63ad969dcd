"""Load: the valid records into the target, parents first, chunk by chunk, each in one transaction.

The transaction of a chunk holds its rows, its part of the ID map, its undo rows and its state: after a
crash a chunk is there whole or not at all. Its events are appended after it, and the chunk says when
they are; a resumed run appends them again otherwise, with the same ids.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl
import sqlalchemy as sa

from pipelines.migration.chunks import Chunk
from pipelines.migration.context import RunContext, check_accounting
from pipelines.migration.errors import TargetNotEmptyError
from pipelines.migration.manifest import StageOutcome
from pipelines.migration.plan import ChildPlan, EntityPlan, Plan
from pipelines.migration.records import migrated_events
from pipelines.migration.refusals import keep_refusals, kept_refusals, write_or_halve
from pipelines.migration.rowhash import row_hashes
from pipelines.migration.schema import Table
from pipelines.migration.target import TargetTransaction
from pipelines.migration.validate import refusals_allowed
from pipelines.migration.worktables import (
    any_chunk_loaded,
    chunks,
    loaded_chunks,
    mark_chunk,
    refuse_unless_running,
)


@dataclass(frozen=True)
class _Rows:
    """What goes into one table: its rows, and for each row the record it belongs to."""

    table: Table
    frame: pl.DataFrame
    records: pl.Series


async def load(run: RunContext) -> StageOutcome:
    """Write every valid record and append its event; goes on at the first chunk that is not done."""
    run.require("load", needs="validate")
    began = time.monotonic()
    await asyncio.to_thread(_refuse_filled_target, run)
    counts, children = {}, {}
    for name, entity in run.plan.entities.items():
        counts[name], made = await _load_entity(run, entity)
        children[name] = made
    await asyncio.to_thread(_advance_sequences, run)
    check_accounting("load", counts)
    total = sum(count["out"] for count in counts.values())
    took = max(time.monotonic() - began, 1e-6)
    facts: dict[str, Any] = {
        "target_type": run.target.describe()["kind"],
        "imported_count": total,
        "import_stats": {
            "entities": {name: {**count, "inserted": count["out"]} for name, count in counts.items()},
            "children": children,
            "rows_per_second": round(total / took),
        },
    }
    return await asyncio.to_thread(run.finish, "load", facts)


def refuse_filled_tables(transaction: TargetTransaction, plan: Plan) -> None:
    """Raise TargetNotEmptyError when a table that the plan writes to holds a row."""
    for table in tables_written(plan):
        if not transaction.is_empty(table):
            raise TargetNotEmptyError(table.name)


def tables_written(plan: Plan) -> list[Table]:
    """The target tables in loading order, each once."""
    tables = {}
    for entity in plan.entities.values():
        tables[entity.target.name] = entity.target
        tables |= {child.table.name: child.table for child in entity.children.values()}
    return list(tables.values())


def _refuse_filled_target(run: RunContext) -> None:
    with run.target.transaction() as transaction:
        transaction.lock()
        if not any_chunk_loaded(transaction.connection, run.migration_id):
            refuse_filled_tables(transaction, run.plan)


async def _load_entity(run: RunContext, entity: EntityPlan) -> tuple[dict[str, int], dict[str, int]]:
    staged = run.staged("valid", entity.name)
    total, done = sum(chunk.rows for chunk in staged), 0
    made = dict.fromkeys(entity.children, 0)
    states = await asyncio.to_thread(_states, run, entity)
    for place, chunk in enumerate(staged):
        state = states.get(chunk.number)
        families = {name: run.staged("valid", f"{entity.name}.{name}")[place] for name in made}
        if state is None or not state.events_appended:
            frame = await asyncio.to_thread(run.read, chunk)
            children = {name: await asyncio.to_thread(run.read, family) for name, family in families.items()}
            at = state.loaded_at if state else None
            await _load_chunk(run, entity, chunk, frame, children, loaded_at=at)
        made = {name: count + families[name].rows for name, count in made.items()}
        done += chunk.rows
        await asyncio.to_thread(run.progress, "load", entity.name, done, total)
    refused = await asyncio.to_thread(_refused, run, entity)
    return {"in": total, "out": total - refused, "quarantined": refused, "filtered": 0}, made


def _refused(run: RunContext, entity: EntityPlan) -> int:
    with run.target.transaction() as transaction:
        kept = kept_refusals(transaction.connection, run.migration_id, entity.name)
    return sum(item.chunk >= run.first_chunk for item in kept)


def _states(run: RunContext, entity: EntityPlan) -> dict[int, sa.Row[Any]]:
    with run.target.transaction() as transaction:
        return loaded_chunks(transaction.connection, run.migration_id, entity.name)


async def _load_chunk(
    run: RunContext,
    entity: EntityPlan,
    chunk: Chunk,
    frame: pl.DataFrame,
    children: dict[str, pl.DataFrame],
    *,
    loaded_at: datetime | None,
) -> None:
    if loaded_at is None:
        loaded_at = await asyncio.to_thread(_write_chunk, run, entity, chunk, frame, children)
    frame, children = await asyncio.to_thread(_accepted, run, entity, chunk, frame, children)
    events = await asyncio.to_thread(lambda: [*migrated_events(run, entity, frame, children, loaded_at)])
    await run.announcer.append(events)
    await asyncio.to_thread(_mark_announced, run, entity, chunk)


def _accepted(
    run: RunContext, entity: EntityPlan, chunk: Chunk, frame: pl.DataFrame, children: dict[str, pl.DataFrame]
) -> tuple[pl.DataFrame, dict[str, pl.DataFrame]]:
    """The records of a loaded chunk that the target took, and their children."""
    with run.target.transaction() as transaction:
        refused = kept_refusals(transaction.connection, run.migration_id, entity.name, chunk.number)
    keys = pl.Series([item.source_key for item in refused], dtype=pl.String)
    taken = frame.filter(~pl.col("_key").is_in(keys.implode()))
    return taken, {name: _of(taken, made) for name, made in children.items()}


def _of(records: pl.DataFrame, made: pl.DataFrame) -> pl.DataFrame:
    return made.filter(pl.col("_record").is_in(records["_record"].implode()))


def _mark_announced(run: RunContext, entity: EntityPlan, chunk: Chunk) -> None:
    with run.target.transaction() as transaction:
        mark_chunk(transaction.connection, run.migration_id, entity.name, chunk.number, events_appended=True)


def _write_chunk(
    run: RunContext, entity: EntityPlan, chunk: Chunk, frame: pl.DataFrame, children: dict[str, pl.DataFrame]
) -> datetime:
    """Write one chunk whole; when it was loaded, also by another process meanwhile."""
    with run.target.transaction() as transaction:

        def write(part: pl.DataFrame) -> None:
            parent = _Rows(entity.target, _target_rows(entity, part), part["_record"])
            families = [_child_rows(entity.children[n], _of(part, made)) for n, made in children.items()]
            for rows in (parent, *families):
                transaction.copy_in(rows.table.name, rows.frame)
            for rows in (parent, *families):
                _copy_undo(run, transaction, entity, chunk, rows)
            _copy_id_map(run, transaction, entity, part)

        transaction.lock()
        there = loaded_chunks(transaction.connection, run.migration_id, entity.name).get(chunk.number)
        if there is not None:
            loaded_at: datetime = there.loaded_at
            return loaded_at
        refuse_unless_running(transaction.connection, run.migration_id)
        refused = write_or_halve(
            frame, write, transaction.savepoint, allowed=refusals_allowed(run, entity.name)
        )
        keep_refusals(transaction.connection, run.migration_id, entity.name, chunk.number, refused)
        return _insert_state(run, transaction, entity, chunk, sum(made.height for made in children.values()))


def _insert_state(
    run: RunContext, transaction: TargetTransaction, entity: EntityPlan, chunk: Chunk, child_count: int
) -> datetime:
    loaded_at = datetime.now(UTC)
    transaction.connection.execute(
        sa.insert(chunks).values(
            migration_id=run.migration_id,
            entity=entity.name,
            number=chunk.number,
            row_count=chunk.rows,
            child_count=child_count,
            loaded_at=loaded_at,
            events_appended=False,
            undone_by=0,
        )
    )
    return loaded_at


def _target_rows(entity: EntityPlan, frame: pl.DataFrame) -> pl.DataFrame:
    values = [pl.col(f"t:{name}").alias(name) for name in entity.fields if name != entity.target_key]
    return frame.select(pl.col("_record").alias(entity.target_key), *values)


def _child_rows(child: ChildPlan, made: pl.DataFrame) -> _Rows:
    assert child.table.key is not None
    values = [pl.col(name).alias(name[2:]) for name in made.columns if name.startswith("t:")]
    keyed = made.select(
        pl.col("_child").alias(child.table.key), pl.col("_record").alias(child.parent), *values
    )
    return _Rows(child.table, keyed, made["_record"])


def _copy_undo(
    run: RunContext, transaction: TargetTransaction, entity: EntityPlan, chunk: Chunk, rows: _Rows
) -> None:
    """For each row what was written (by transform) and what stands there now (defaults, triggers)."""
    assert rows.table.key is not None
    keys = rows.frame[rows.table.key]
    after = transaction.after_hashes(rows.table, keys.to_list())
    columns = [rows.table.columns[name] for name in hashed_columns(rows.frame.columns)]
    texts = keys.cast(pl.String).alias("target_key")
    fixed = {
        "migration_id": run.migration_id,
        "table_name": rows.table.name,
        "entity": entity.name,
        "op": "insert",
        "state": "applied",
    }
    frame = texts.to_frame().with_columns(
        rows.records.cast(pl.String).alias("record_key"),
        row_hashes(rows.frame, columns),
        pl.Series("after_hash", [after[text] for text in texts], dtype=pl.String),
        pl.lit(chunk.number).alias("chunk"),
        *(pl.lit(text).alias(name) for name, text in fixed.items()),
    )
    transaction.copy_in("mig_undo", frame)


def hashed_columns(names: Sequence[str]) -> list[str]:
    """The order in which a row's columns enter its hash."""
    return sorted(names)


def _copy_id_map(
    run: RunContext, transaction: TargetTransaction, entity: EntityPlan, frame: pl.DataFrame
) -> None:
    transaction.copy_in(
        "mig_idmap",
        frame.select(
            pl.lit(run.migration_id).alias("migration_id"),
            pl.lit(entity.name).alias("entity"),
            pl.col("_key").alias("source_key"),
            pl.col("_record").cast(pl.String).alias("target_key"),
        ),
    )


def _advance_sequences(run: RunContext) -> None:
    with run.target.transaction() as transaction:
        for table in tables_written(run.plan):
            transaction.advance_sequence(table)
