"""Load: the valid records into the target, parents first, chunk by chunk, each in one transaction.

The transaction of a chunk holds its rows, the record of what it wrote and its state: after a crash a
chunk is there whole or not at all. Its events are appended after it, while the next chunk is written,
and the chunk says when they are; a resumed run appends them again otherwise, with the same ids.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl
import sqlalchemy as sa

from pipelines.migration.chunks import Chunk
from pipelines.migration.context import RunContext
from pipelines.migration.errors import MigrationError, TargetNotEmptyError
from pipelines.migration.eventframes import migrated_frame
from pipelines.migration.manifest import StageOutcome
from pipelines.migration.plan import EntityPlan, Plan
from pipelines.migration.refusals import Refusal, keep_refusals, kept_refusals, write_or_halve
from pipelines.migration.schema import Table
from pipelines.migration.target import TargetTransaction
from pipelines.migration.validate import refusals_allowed
from pipelines.migration.worktables import (
    OUTCOMES,
    WRITTEN,
    any_chunk_loaded,
    chunks,
    loaded_chunk,
    loaded_chunks,
    mark_chunk,
    refuse_unless_running,
    save_written,
    written_by,
)
from pipelines.migration.writing import outcomes_of, write_children, write_records


@dataclass(frozen=True)
class _Staged:
    """One chunk as the validate stage left it."""

    chunk: Chunk
    frame: pl.DataFrame
    children: dict[str, pl.DataFrame]

    def of(self, frame: pl.DataFrame) -> _Staged:
        """Some of its records, with their children."""
        records = frame["_record"].implode()
        kept = {name: made.filter(pl.col("_record").is_in(records)) for name, made in self.children.items()}
        return _Staged(self.chunk, frame, kept)

    def without(self, refused: Sequence[Refusal]) -> _Staged:
        """The records that the target took, with their children."""
        keys = pl.Series([item.source_key for item in refused], dtype=pl.String)
        return self.of(self.frame.filter(~pl.col("_key").is_in(keys.implode()))) if refused else self


async def load(run: RunContext) -> StageOutcome:
    """Write every valid record and append its event; goes on at the first chunk that is not done."""
    run.require("load", needs="validate")
    began = time.monotonic()
    await asyncio.to_thread(_refuse_filled_target, run)
    for entity in run.plan.entities.values():
        await _load_entity(run, entity)
    counts, children = await asyncio.to_thread(_totals, run)
    await asyncio.to_thread(_advance_sequences, run)
    total = sum(count["out"] for count in counts.values())
    took = max(time.monotonic() - began, 1e-6)
    facts: dict[str, Any] = {
        "target_type": run.target.describe()["kind"],
        "imported_count": total - sum(count["skipped"] for count in counts.values()),
        "import_stats": {
            "entities": counts,
            "children": children,
            "rows_per_second": round(total / took),
        },
    }
    return await asyncio.to_thread(run.finish, "load", facts)


def refuse_filled_tables(transaction: TargetTransaction, plan: Plan) -> None:
    """Raise TargetNotEmptyError when a table holds a row whose entity's policy is to fail then."""
    for entity in plan.entities.values():
        if entity.policy == "fail":
            for table in tables_of(entity):
                if not transaction.is_empty(table):
                    raise TargetNotEmptyError(table.name)


def tables_of(entity: EntityPlan) -> list[Table]:
    """The target tables of an entity, its own first."""
    return [entity.target, *(child.table for child in entity.children.values())]


def tables_written(plan: Plan) -> list[Table]:
    """The target tables in loading order."""
    return [table for entity in plan.entities.values() for table in tables_of(entity)]


def hashed_columns(names: Sequence[str]) -> list[str]:
    """The order in which a row's columns enter its hash."""
    return sorted(names)


def _refuse_filled_target(run: RunContext) -> None:
    with run.target.transaction() as transaction:
        transaction.lock()
        if not any_chunk_loaded(transaction.connection, run.migration_id):
            refuse_filled_tables(transaction, run.plan)


async def _load_entity(run: RunContext, entity: EntityPlan) -> None:
    """Write chunk after chunk; the events of those before are made and appended meanwhile."""
    staged = run.staged("valid", entity.name)
    total, done = sum(chunk.rows for chunk in staged), 0
    states = await asyncio.to_thread(_states, run, entity)
    announcing: deque[asyncio.Task[None]] = deque()
    try:
        for place, chunk in enumerate(staged):
            state = states.get(chunk.number)
            if state is None or not state.events_appended:
                read = await asyncio.to_thread(_read, run, entity, place, chunk)
                read, outcomes, at = await asyncio.to_thread(_write_chunk, run, entity, read)
                while announcing and (len(announcing) == _ANNOUNCING_AT_MOST or announcing[0].done()):
                    await announcing.popleft()
                announcing.append(asyncio.create_task(_announce(run, entity, read, outcomes, at)))
            done += chunk.rows
            await asyncio.to_thread(run.progress, "load", entity.name, done, total)
    finally:
        results = await asyncio.gather(*announcing, return_exceptions=True)
    for failure in filter(None, results):
        raise failure


_ANNOUNCING_AT_MOST = 2
"""Chunks whose events are under way: one is made while another is stored."""


async def _announce(
    run: RunContext, entity: EntityPlan, staged: _Staged, outcomes: pl.Series, at: datetime
) -> None:
    """Append the events of a chunk that is committed, and mark it."""
    attempt = run.announcer.attempt_of("load")
    name = run.announcer.frame_name("load", *attempt, entity.name, str(staged.chunk.number))
    frame = await asyncio.to_thread(
        migrated_frame, run, entity, staged.frame, staged.children, name=name, outcomes=outcomes, at=at
    )
    if frame is not None:
        await run.announcer.append_frame(frame, name)
    await asyncio.to_thread(_mark_announced, run, entity, staged.chunk)


def _states(run: RunContext, entity: EntityPlan) -> dict[int, sa.Row[Any]]:
    with run.target.transaction() as transaction:
        return loaded_chunks(transaction.connection, run.migration_id, entity.name)


def _read(run: RunContext, entity: EntityPlan, place: int, chunk: Chunk) -> _Staged:
    families = {name: run.staged("valid", f"{entity.name}.{name}")[place] for name in entity.children}
    return _Staged(chunk, run.read(chunk), {name: run.read(family) for name, family in families.items()})


def _mark_announced(run: RunContext, entity: EntityPlan, chunk: Chunk) -> None:
    with run.target.transaction() as transaction:
        mark_chunk(transaction.connection, run.migration_id, entity.name, chunk.number, events_appended=True)


def _write_chunk(run: RunContext, entity: EntityPlan, staged: _Staged) -> tuple[_Staged, pl.Series, datetime]:
    """Write one chunk whole, unless it was loaded, also by another process meanwhile: the records that
    the target took, what became of each, and when."""
    number = staged.chunk.number
    with run.target.transaction() as transaction:
        transaction.lock()
        connection = transaction.connection
        there = loaded_chunk(connection, run.migration_id, entity.name, number)
        if there is not None:
            kept = written_by(connection, run.migration_id, entity.name, number)
            taken = staged.without(kept_refusals(connection, run.migration_id, entity.name, number))
            loaded_at: datetime = there.loaded_at
            return taken, outcomes_of(entity, kept), loaded_at
        refuse_unless_running(connection, run.migration_id)
        made, refused = _write_rows(run, transaction, entity, staged)
        keep_refusals(connection, run.migration_id, entity.name, number, refused)
        for table, frame in made.items():
            save_written(connection, run.migration_id, entity.name, number, table=table, frame=frame)
        taken, outcomes = staged.without(refused), outcomes_of(entity, made)
        touched = {
            table: frame.filter(pl.col("op").is_in(["insert", "update", "delete"])).height
            for table, frame in made.items()
        }
        return taken, outcomes, _insert_state(run, transaction, entity, taken, outcomes, touched)


def _write_rows(
    run: RunContext, transaction: TargetTransaction, entity: EntityPlan, staged: _Staged
) -> tuple[dict[str, pl.DataFrame], list[Refusal]]:
    """Write what the target takes: what was done to each table, and the records that it refused."""
    parts: dict[str, list[pl.DataFrame]] = {}

    def write(frame: pl.DataFrame) -> None:
        part = staged.of(frame) if frame.height < staged.frame.height else staged
        done = {entity.target.name: write_records(transaction, entity, part.frame)}
        parents = done[entity.target.name]
        for name, children in part.children.items():
            child = entity.children[name]
            first = run.row.first_keys.get(child.table.name, 0)
            done[child.table.name] = write_children(transaction, child, children, parents, first)
        transaction.check_deferred()
        for table, rows in done.items():
            parts.setdefault(table, []).append(rows)

    allowed = refusals_allowed(run, entity.name)
    refused = write_or_halve(staged.frame, write, transaction.savepoint, allowed=allowed)
    nothing = pl.DataFrame(schema=WRITTEN)
    made = {table.name: pl.concat([nothing, *parts.get(table.name, [])]) for table in tables_of(entity)}
    return made, refused


def _insert_state(
    run: RunContext,
    transaction: TargetTransaction,
    entity: EntityPlan,
    staged: _Staged,
    outcomes: pl.Series,
    touched: dict[str, int],
) -> datetime:
    loaded_at = datetime.now(UTC)
    transaction.connection.execute(
        sa.insert(chunks).values(
            migration_id=run.migration_id,
            entity=entity.name,
            number=staged.chunk.number,
            row_count=staged.frame.height,
            child_count=sum(frame.height for frame in staged.children.values()),
            counts={outcome: int((outcomes == outcome).sum()) for outcome in OUTCOMES},
            touched=touched,
            loaded_at=loaded_at,
            events_appended=False,
            undone_by=0,
            undone_since=0,
            undo_announced=0,
        )
    )
    return loaded_at


def _totals(run: RunContext) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, int]]]:
    """The accounting of each entity in this attempt, and the children made for its records."""
    counts, children = {}, {}
    for name, entity in run.plan.entities.items():
        states = [state for number, state in _states(run, entity).items() if number >= run.first_chunk]
        total = sum(chunk.rows for chunk in run.staged("valid", name))
        settled = {outcome: sum(state.counts[outcome] for state in states) for outcome in OUTCOMES}
        with run.target.transaction() as transaction:
            kept = kept_refusals(transaction.connection, run.migration_id, name)
        refused = sum(item.chunk >= run.first_chunk for item in kept)
        if total != sum(settled.values()) + refused:
            raise MigrationError(f"the accounting of {name} does not add up: {settled}", stage="load")
        counts[name] = {"in": total, "out": total - refused, "quarantined": refused, "filtered": 0, **settled}
        children[name] = {
            child: sum(chunk.rows for chunk in run.staged("valid", f"{name}.{child}"))
            for child in entity.children
        }
    return counts, children


def _advance_sequences(run: RunContext) -> None:
    with run.target.transaction() as transaction:
        for table in tables_written(run.plan):
            if table.is_numbered:
                transaction.advance_sequence(table)
