"""Rollback: delete exactly what the run inserted, children first, and nothing that others changed since.

A record and its children are one thing: it is deleted when every row of it is as the run left it and
nothing else refers to it; else it is left alone whole and reported. Each chunk is one transaction with
its undo state, the last loaded first, so a rollback that was killed goes on where it stopped.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from eventsourcing.catalogue import RollbackCompletedEvent, RollbackInitiatedEvent
from pipelines.migration.context import RunContext
from pipelines.migration.errors import MigrationError
from pipelines.migration.manifest import StageOutcome
from pipelines.migration.plan import EntityPlan
from pipelines.migration.records import rolled_back_events
from pipelines.migration.schema import Table
from pipelines.migration.target import Reference, TargetTransaction
from pipelines.migration.worktables import loaded_chunks, mark_chunk, undo, undo_rows, update_run

_FIRST = 100
Conflicts = dict[str, tuple[str, str]]
"""By record: `conflict` (left as it is) or `gone` (others deleted all of it), and the reason."""


@dataclass(frozen=True)
class _Rollback:
    """One rollback of a run: the n-th, since when, and why."""

    number: int
    rollback_id: str
    at: datetime
    reason: str
    cause: UUID


async def rollback(run: RunContext, *, reason: str) -> StageOutcome:
    """Undo the run, or finish undoing it; the outcome says what was deleted and what was left alone.

    Raises MigrationError when the run was rolled back wholly already.
    """
    current = await asyncio.to_thread(_begin, run, reason)
    await _announce_begin(run, current)
    for entity in reversed(run.plan.entities.values()):
        references = await asyncio.to_thread(run.target.references_to, entity.target.name)
        await _undo_entity(run, entity, current, references)
    stats = await asyncio.to_thread(_statistics, run, current)
    outcome = StageOutcome("rollback", datetime.now(UTC), {**stats, "rollback_id": current.rollback_id})
    await _announce_end(run, current, stats)
    await asyncio.to_thread(_end, run)
    return outcome


def _begin(run: RunContext, reason: str) -> _Rollback:
    """Begin the next rollback, or take up the one that is under way with its own reason and time."""
    row = run.row
    number, at, why = row.rollback_number, row.rollback_at, row.rollback_reason or reason
    with run.target.transaction() as transaction:
        transaction.lock()
        if row.status != "rolling_back" or at is None:
            if row.status == "rolled_back" and not _left(run, transaction):
                raise MigrationError(
                    f"migration {run.migration_id!r} is rolled back already", stage="rollback"
                )
            number, at, why = number + 1, datetime.now(UTC), reason
            update_run(
                transaction.connection,
                run.migration_id,
                status="rolling_back",
                rollback_number=number,
                rollback_at=at,
                rollback_reason=reason,
            )
    last = "complete" if row.stage == "complete" else "start"
    return _Rollback(number, f"{run.migration_id}:rollback-{number}", at, why, run.announcer.stage_id(last))


async def _announce_begin(run: RunContext, current: _Rollback) -> None:
    counts = await asyncio.to_thread(_scope, run)
    event = RollbackInitiatedEvent(
        aggregate_id=current.rollback_id,
        data={
            "migration_id": run.migration_id,
            "reason": current.reason,
            "rollback_scope": {"stages": ["load"], "rows": counts},
        },
        **run.announcer.envelope(current.rollback_id, "initiated", cause=current.cause, at=current.at),
    )
    await run.announcer.append([event])


def _scope(run: RunContext) -> dict[str, int]:
    """The rows that the run wrote, by table: the same however often it is asked."""
    statement = (
        sa.select(undo.c.table_name, sa.func.count())
        .where(undo.c.migration_id == run.migration_id)
        .group_by(undo.c.table_name)
        .order_by(undo.c.table_name)
    )
    with run.target.transaction() as transaction:
        return {row[0]: row[1] for row in transaction.connection.execute(statement)}


async def _undo_entity(
    run: RunContext, entity: EntityPlan, current: _Rollback, references: list[Reference]
) -> None:
    states = await asyncio.to_thread(_states, run, entity)
    for done, number in enumerate(sorted(states, reverse=True), start=1):
        if states[number].undone_by != current.number:
            records, at = await asyncio.to_thread(_undo_chunk, run, entity, number, current, references)
            initiated = run.announcer.event_id(current.rollback_id, "initiated")
            await run.announcer.append(
                rolled_back_events(run, entity, current.rollback_id, records, cause=initiated, at=at)
            )
            await asyncio.to_thread(_mark_undone, run, entity, number, current)
        await asyncio.to_thread(run.progress, "rollback", entity.name, done, len(states))


def _states(run: RunContext, entity: EntityPlan) -> dict[int, sa.Row[Any]]:
    with run.target.transaction() as transaction:
        return loaded_chunks(transaction.connection, run.migration_id, entity.name)


def _mark_undone(run: RunContext, entity: EntityPlan, number: int, current: _Rollback) -> None:
    with run.target.transaction() as transaction:
        mark_chunk(transaction.connection, run.migration_id, entity.name, number, undone_by=current.number)


def _undo_chunk(
    run: RunContext, entity: EntityPlan, number: int, current: _Rollback, references: list[Reference]
) -> tuple[list[str], datetime]:
    """Delete what may be deleted of a chunk; the records that this rollback deleted, and when.

    When its transaction was committed before a crash, nothing is deleted twice: the same is returned.
    """
    with run.target.transaction() as transaction:
        transaction.lock()
        rows = undo_rows(transaction.connection, run.migration_id, entity.name, number)
        mine = [row for row in rows if row.undone_by == current.number]
        if not mine:
            standing = [row for row in rows if row.state in ("applied", "conflict")]
            conflicts = _conflicts(transaction, entity, standing, references)
            clean = [row for row in standing if row.record_key not in conflicts]
            _delete(transaction, entity, clean)
            at = datetime.now(UTC)
            _record_states(transaction, undo_of(run, entity, number), current, conflicts, at)
            records = [row.target_key for row in clean if row.table_name == entity.target.name]
        else:
            at = mine[0].undone_at
            done = [row for row in mine if row.state == "undone"]
            records = [row.target_key for row in done if row.table_name == entity.target.name]
    return sorted(records, key=lambda key: (len(key), key)), at


def _conflicts(
    transaction: TargetTransaction, entity: EntityPlan, rows: list[sa.Row[Any]], references: list[Reference]
) -> Conflicts:
    """The records that others changed, deleted or refer to: the state each is left in, and why."""
    conflicts: Conflicts = {}
    standing: set[str] = set()
    for table in _tables(entity):
        own = [row for row in rows if row.table_name == table.name]
        now = transaction.after_hashes(table, _keys(table, own))
        standing |= {row.record_key for row in own if row.target_key in now}
        for row in own:
            if now.get(row.target_key) != row.after_hash:
                how = "changed" if row.target_key in now else "deleted"
                reason = f"{table.name} {row.target_key} was {how} by others"
                conflicts.setdefault(row.record_key, ("conflict", reason))
    written = {(row.table_name, row.target_key) for row in rows}
    parents = [row for row in rows if row.table_name == entity.target.name]
    for reference in references:
        for record, own_key in transaction.referring(reference, _keys(entity.target, parents)):
            if (reference.table.name, own_key) not in written:
                conflicts.setdefault(record, ("conflict", f"{reference.table.name} {own_key} refers to it"))
    return {
        record: conflict if record in standing else ("gone", conflict[1])
        for record, conflict in conflicts.items()
    }


def _delete(transaction: TargetTransaction, entity: EntityPlan, rows: list[sa.Row[Any]]) -> None:
    for table in reversed(_tables(entity)):
        transaction.delete(table, _keys(table, [row for row in rows if row.table_name == table.name]))


def undo_of(run: RunContext, entity: EntityPlan, number: int) -> sa.ColumnElement[bool]:
    """The undo rows of one chunk."""
    return sa.and_(
        undo.c.migration_id == run.migration_id, undo.c.entity == entity.name, undo.c.chunk == number
    )


def _record_states(
    transaction: TargetTransaction,
    in_chunk: sa.ColumnElement[bool],
    current: _Rollback,
    conflicts: Conflicts,
    at: datetime,
) -> None:
    """All rows of the chunk that stood: undone, in conflict with the reason, or gone by others' hand."""
    by_reason: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record, conflict in conflicts.items():
        by_reason[conflict].append(record)
    standing = sa.and_(in_chunk, undo.c.state.in_(["applied", "conflict"]))
    settled = {"undone_by": current.number, "undone_at": at}
    for (state, reason), records in by_reason.items():
        left = sa.update(undo).where(standing, undo.c.record_key.in_(records))
        transaction.connection.execute(left.values(state=state, reason=reason, **settled))
    others = sa.or_(undo.c.undone_by.is_(None), undo.c.undone_by != current.number)
    gone = sa.update(undo).where(standing, others)
    transaction.connection.execute(gone.values(state="undone", reason=None, **settled))


def _tables(entity: EntityPlan) -> list[Table]:
    return [entity.target, *(child.table for child in entity.children.values())]


def _keys(table: Table, rows: list[sa.Row[Any]]) -> list[Any]:
    assert table.key is not None
    is_number = table.columns[table.key].kind == "integer"
    return [int(row.target_key) if is_number else row.target_key for row in rows]


def _left(run: RunContext, transaction: TargetTransaction) -> int:
    statement = sa.select(sa.func.count()).where(
        undo.c.migration_id == run.migration_id, undo.c.state.in_(["applied", "conflict"])
    )
    return int(transaction.connection.scalar(statement) or 0)


def _statistics(run: RunContext, current: _Rollback) -> dict[str, Any]:
    """What this rollback deleted and what is left; conflicts are told apart by record."""
    mine = sa.and_(undo.c.migration_id == run.migration_id, undo.c.undone_by == current.number)
    by_table = (
        sa.select(undo.c.table_name, undo.c.state, sa.func.count())
        .where(mine)
        .group_by(undo.c.table_name, undo.c.state)
    )
    conflicts = (
        sa.select(undo.c.entity, undo.c.record_key, undo.c.reason)
        .where(mine, undo.c.state.in_(["conflict", "gone"]))
        .distinct()
        .order_by(undo.c.entity, undo.c.record_key)
    )
    with run.target.transaction() as transaction:
        deleted = {
            table: count
            for table, state, count in transaction.connection.execute(by_table)
            if state == "undone"
        }
        found = [
            {"entity": entity, "key": key, "reason": reason}
            for entity, key, reason in transaction.connection.execute(conflicts)
        ]
        residual = _left(run, transaction)
    return {
        "deleted": dict(sorted(deleted.items())),
        "restored": 0,
        "conflicts": len(found),
        "conflicting": found[:_FIRST],
        "residual_diff": residual,
    }


async def _announce_end(run: RunContext, current: _Rollback, stats: dict[str, Any]) -> None:
    """Its time is the store's to default: a crash before `_end` announces it a second time."""
    cause = run.announcer.event_id(current.rollback_id, "initiated")
    envelope = run.announcer.envelope(current.rollback_id, "completed", cause=cause, at=current.at)
    del envelope["timestamp"]
    event = RollbackCompletedEvent(
        aggregate_id=current.rollback_id,
        data={
            "migration_id": run.migration_id,
            "rollback_stats": stats,
            "success": stats["residual_diff"] == 0,
        },
        **envelope,
    )
    await run.announcer.append([event])


def _end(run: RunContext) -> None:
    with run.target.transaction() as transaction:
        update_run(transaction.connection, run.migration_id, holds=False, status="rolled_back")
