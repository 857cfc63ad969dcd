"""Rollback: put back exactly what the run changed, children first, and nothing that others changed since.

A record and its children are one thing: it is taken back when every row of it is as the run left it and
nothing else refers to it; else it is left alone whole and reported. Inserted rows are deleted, updated
ones become what they were. Each chunk is one transaction with its undo state, the last loaded first, so a
rollback that was killed goes on where it stopped. A rollback to an earlier stage ends by forgetting what
came after it, and the run may go on from there.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import polars as pl
import sqlalchemy as sa

from eventsourcing.catalogue import RollbackCompletedEvent, RollbackInitiatedEvent
from pipelines.migration.chunks import remove_stage
from pipelines.migration.context import RunContext
from pipelines.migration.errors import MigrationError, StagedDataError
from pipelines.migration.eventframes import rolled_back_frame
from pipelines.migration.manifest import StageOutcome
from pipelines.migration.plan import EntityPlan
from pipelines.migration.target import Reference
from pipelines.migration.undoing import undo_chunk
from pipelines.migration.worktables import chunks, forget_chunks, left, loaded_chunks, mark_chunk, update_run

STAGES = ("start", "schema", "extract", "transform", "validate")
"""The stages that a rollback can stop at: what they found is kept, what came after them is not."""

_FIRST = 100
_FILES = {
    "extract": ("extract",),
    "transform": ("transform",),
    "validate": ("matched", "valid", "quarantine"),
}


@dataclass(frozen=True)
class _Rollback:
    """One rollback of a run: the n-th, since when, why and how far."""

    number: int
    rollback_id: str
    at: datetime
    reason: str
    cause: UUID
    to_stage: str | None
    force: bool


async def rollback(
    run: RunContext, *, reason: str, to_stage: str | None = None, force: bool = False
) -> StageOutcome:
    """Undo the run, or finish undoing it; the outcome says what was put back and what was left alone.

    Raises MigrationError when the run was rolled back wholly already, or cannot go back to that stage.
    """
    _refuse_stage(run, to_stage)
    current = await asyncio.to_thread(_begin, run, reason, to_stage, force)
    await _announce_begin(run, current)
    for entity in reversed(run.plan.entities.values()):
        references = await asyncio.to_thread(run.target.references_to, entity.target.name)
        await _undo_entity(run, entity, current, references)
    stats = await asyncio.to_thread(_statistics, run, current)
    facts = {**stats, "rollback_id": current.rollback_id, "to_stage": current.to_stage}
    outcome = StageOutcome("rollback", datetime.now(UTC), facts)
    if current.to_stage is None:  # nothing goes on from here, and what is staged holds secrets
        await asyncio.to_thread(run.remove_staged)
    await _announce_end(run, current, stats)
    await asyncio.to_thread(_end, run, current, whole=stats["residual_diff"] == 0)
    return outcome


def _refuse_stage(run: RunContext, to_stage: str | None) -> None:
    if to_stage is None:
        return
    if to_stage not in STAGES:
        known = ", ".join(STAGES)
        raise MigrationError(f"{to_stage!r} is no stage to go back to; known are {known}", stage="rollback")
    if run.attempt > 1:
        raise MigrationError("a run that was retried is rolled back wholly", stage="rollback")
    if run.outcome(to_stage) is None:
        raise StagedDataError(f"the run did not come as far as {to_stage!r}, or its files are gone")
    if run.outcome("complete") is not None:
        reason = "a completed run has no staged files to go on from; roll it back wholly"
        raise StagedDataError(reason)


def _begin(run: RunContext, reason: str, to_stage: str | None, force: bool) -> _Rollback:
    """Begin the next rollback, or take up the one that is under way with its own reason and time."""
    row = run.row
    number, at, why, stage = row.rollback_number, row.rollback_at, row.rollback_reason, row.rollback_stage
    with run.target.transaction() as transaction:
        transaction.lock()
        if row.status != "rolling_back" or at is None or why is None:
            if row.status == "rolled_back" and not _left(run, transaction.connection):
                raise MigrationError(
                    f"migration {run.migration_id!r} is rolled back already", stage="rollback"
                )
            number, at, why, stage = number + 1, datetime.now(UTC), reason, to_stage
            update_run(
                transaction.connection,
                run.migration_id,
                status="rolling_back",
                rollback_number=number,
                rollback_at=at,
                rollback_reason=reason,
                rollback_stage=to_stage,
            )
    last = "complete" if row.stage == "complete" else "start"
    cause = run.announcer.stage_id(last)
    return _Rollback(number, f"{run.migration_id}:rollback-{number}", at, why, cause, stage, force)


async def _announce_begin(run: RunContext, current: _Rollback) -> None:
    counts = await asyncio.to_thread(_scope, run)
    stages = STAGES[STAGES.index(current.to_stage) + 1 :] if current.to_stage else ()
    event = RollbackInitiatedEvent(
        aggregate_id=current.rollback_id,
        data={
            "migration_id": run.migration_id,
            "reason": current.reason,
            "rollback_scope": {"stages": [*stages, "load"], "rows": counts},
        },
        **run.announcer.envelope(current.rollback_id, "initiated", cause=current.cause, at=current.at),
    )
    await run.announcer.append([event])


def _scope(run: RunContext) -> dict[str, int]:
    """The rows that the run changed, by table: the same however often it is asked."""
    statement = sa.select(chunks.c.touched).where(chunks.c.migration_id == run.migration_id)
    with run.target.transaction() as transaction:
        return _summed(transaction.connection.scalars(statement))


def _summed(counts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for count in counts:
        for name, number in count.items():
            total[name] = total.get(name, 0) + number
    return {name: number for name, number in sorted(total.items()) if number}


async def _undo_entity(
    run: RunContext, entity: EntityPlan, current: _Rollback, references: list[Reference]
) -> None:
    states = await asyncio.to_thread(_states, run, entity)
    for done, number in enumerate(sorted(states, reverse=True), start=1):
        if states[number].undo_announced != current.number:
            records, at = await asyncio.to_thread(
                undo_chunk, run, entity, number, references, by=current.number, force=current.force
            )
            await _announce_records(run, entity, current, number, records, at)
        await asyncio.to_thread(run.progress, "rollback", entity.name, done, len(states))


async def _announce_records(
    run: RunContext, entity: EntityPlan, current: _Rollback, number: int, records: pl.DataFrame, at: datetime
) -> None:
    initiated = run.announcer.event_id(current.rollback_id, "initiated")
    rollback_id = current.rollback_id
    name = run.announcer.frame_name(rollback_id, entity.name, str(number))
    frame = await asyncio.to_thread(
        rolled_back_frame, run, entity, rollback_id, records, name=name, cause=initiated, at=at
    )
    if frame is not None:
        await run.announcer.append_frame(frame, name)
    await asyncio.to_thread(_mark_announced, run, entity, number, current)


def _states(run: RunContext, entity: EntityPlan) -> dict[int, sa.Row[Any]]:
    with run.target.transaction() as transaction:
        return loaded_chunks(transaction.connection, run.migration_id, entity.name)


def _mark_announced(run: RunContext, entity: EntityPlan, number: int, current: _Rollback) -> None:
    with run.target.transaction() as transaction:
        mark_chunk(
            transaction.connection, run.migration_id, entity.name, number, undo_announced=current.number
        )


def _left(run: RunContext, connection: sa.Connection) -> int:
    """The records that are as others left them, and no rollback may touch."""
    place = sa.and_(left.c.migration_id == run.migration_id, left.c.state == "conflict")
    return int(connection.scalar(sa.select(sa.func.count()).select_from(left).where(place)) or 0)


def _statistics(run: RunContext, current: _Rollback) -> dict[str, Any]:
    """What this rollback put back and what is left; conflicts are told apart by record."""
    mine = sa.and_(chunks.c.migration_id == run.migration_id, chunks.c.undone_by == current.number)
    met = sa.and_(
        left.c.migration_id == run.migration_id,
        left.c.undone_by == current.number,
        left.c.state.in_(["conflict", "gone"]),
    )
    conflicts = (
        sa.select(left.c.entity, left.c.record_key, left.c.reason)
        .where(met)
        .order_by(left.c.entity, left.c.record_key)
    )
    with run.target.transaction() as transaction:
        undone = [*transaction.connection.scalars(sa.select(chunks.c.undone).where(mine))]
        found = [
            {"entity": entity, "key": key, "reason": reason}
            for entity, key, reason in transaction.connection.execute(conflicts)
        ]
        residual = _left(run, transaction.connection)
    return {
        "deleted": _summed(item["deleted"] for item in undone),
        "restored": sum(_summed(item["restored"] for item in undone).values()),
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


def _end(run: RunContext, current: _Rollback, *, whole: bool) -> None:
    """Rolled back; or, when nothing was left behind, ready to go on after the stage gone back to.

    The manifest forgets first: a crash between the two finds the run still rolling back.
    """
    ended: dict[str, Any] = {"status": "rolled_back"}
    stage = current.to_stage if whole else None
    if stage is not None:
        ended = {"status": "failed", "stage": stage, "attempt": run.row.attempt + 1}
        kept = STAGES[: STAGES.index(stage) + 1]
        for later in STAGES[len(kept) :]:
            for folder in _FILES.get(later, ()):
                remove_stage(run.folder, folder)
                run.manifest.staged.pop(folder, None)
        run.manifest.outcomes = {name: found for name, found in run.manifest.outcomes.items() if name in kept}
        run.manifest.save()
    with run.target.transaction() as transaction:
        if stage is not None:
            forget_chunks(transaction.connection, run.migration_id)
        update_run(transaction.connection, run.migration_id, holds=False, **ended)
