"""What happens when an event arrives, or cannot be handled: sensors over the event store.

The cursor of a sensor that follows the store is the position up to which it has asked for its runs. A
fresh home starts at the horizon of that moment: what was before it is history. What is parked is no
history but stands now, so a fresh home is told of it. Run keys say what a run is for, so a tick that is
evaluated again asks for nothing twice.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import dagster as dg

from eventsourcing.bootstrap import open_system
from eventsourcing.config import Settings
from eventsourcing.dead_letter_queue import DeadLetterQueue
from eventsourcing.events import EventType, RecordedEvent
from eventsourcing.process_models import MIGRATION
from eventsourcing.query import EventQuery
from eventsourcing.wording import counted
from pipelines.config import (
    RedriveConfig,
    RollbackConfig,
    SequenceConfig,
    SnapshotConfig,
    VerifyConfig,
)
from pipelines.jobs import (
    redrive,
    rollback,
    snapshot,
    validate_sequence,
    verify_migration,
)
from resources.migration_journal import MigrationJournal

BATCH = 20
"""How many events one tick reacts to; the next tick goes on behind them."""


class Ended(NamedTuple):
    """The event of a migration's end, and the row of the migration, if a job ran it."""

    event: RecordedEvent
    row: dict[str, Any] | None


@dg.sensor(
    jobs=[validate_sequence, snapshot, verify_migration],
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def completed_migrations(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Of each migration that completes: verify the target, check its course, and keep a snapshot."""
    after = int(context.cursor) if context.cursor is not None else None
    ended, position = asyncio.run(_ended(EventType.MIGRATION_COMPLETED, after))
    requests = [request for each in ended for request in _requests(each)]
    note = None if requests else f"nothing completed up to position {position}"
    return dg.SensorResult(run_requests=requests, skip_reason=note, cursor=str(position))


@dg.sensor(job=rollback, minimum_interval_seconds=5, default_status=dg.DefaultSensorStatus.RUNNING)
def failed_migrations(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Undo a migration that failed under `on_failure: rollback` and whose own run did not undo it.

    Its run undoes it; only when that run is over and the migration still stands as failed or interrupted
    is the rollback asked for. Until then the cursor keeps it as `waiting`.
    """
    known: dict[str, Any] = json.loads(context.cursor) if context.cursor else {}
    ended, position = asyncio.run(_ended(EventType.MIGRATION_FAILED, known.get("position")))
    waiting: dict[str, int] = dict(known.get("waiting", {}))
    waiting |= {each.event.aggregate_id: each.event.position for each in ended if each.row is not None}
    rows = asyncio.run(_waiting(list(waiting))) if waiting else {}
    due = {each: row for each, row in rows.items() if not _run_goes_on(context, row)}
    requests = [_undoing(each, waiting[each]) for each, row in due.items() if _is_to_be_undone(row)]
    waiting = {each: place for each, place in waiting.items() if each in rows and each not in due}
    note = None if requests else f"nothing to undo up to position {position}; {len(waiting)} still run"
    cursor = json.dumps({"position": position, "waiting": waiting})
    return dg.SensorResult(run_requests=requests, skip_reason=note, cursor=cursor)


def _is_to_be_undone(row: dict[str, Any]) -> bool:
    return row["request"].get("on_failure") == "rollback" and row["status"] in ("failed", "interrupted")


def _run_goes_on(context: dg.SensorEvaluationContext, row: dict[str, Any]) -> bool:
    """Whether the run that works on a migration may still undo it."""
    if row["status"] == "interrupted":
        return False  # nobody beats for it any more
    run = context.instance.get_run_by_id(row.get("dagster_run_id") or "")
    return run is not None and not run.is_finished


@dg.sensor(job=redrive, minimum_interval_seconds=30, default_status=dg.DefaultSensorStatus.RUNNING)
def parked_aggregates(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Notice new dead letters: for each new cause a dry run of the re-drive shows what is parked.

    Nothing is re-driven by itself: re-execute the run with `dry_run: false` and a reason.
    """
    known: dict[str, str] = json.loads(context.cursor) if context.cursor else {}
    groups = asyncio.run(_parked())
    failed = {
        f"{group}/{fingerprint}": (group, fingerprint, str(cause["last_failed_at"]))
        for group, row in groups.items()
        for fingerprint, cause in row["causes"].items()
        if fingerprint
    }
    new = [entry for name, entry in failed.items() if known.get(name, "") < entry[2]][:BATCH]
    known = {name: moment for name, moment in known.items() if name in failed}
    known |= {f"{group}/{fingerprint}": moment for group, fingerprint, moment in new}
    note = None if new else f"nothing new; {counted(len(failed), 'cause')} known"
    return dg.SensorResult(
        run_requests=[_preview(*entry) for entry in new], skip_reason=note, cursor=json.dumps(known)
    )


def _preview(group: str, fingerprint: str, moment: str) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=f"parked-{group}-{fingerprint}-{moment}",
        run_config=dg.RunConfig(
            ops={"redrive_dead_letters": RedriveConfig(group=group, fingerprint=fingerprint)}
        ),
        tags={"consumer_group": group, "fingerprint": fingerprint, "source": "sensor"},
    )


async def _parked() -> dict[str, dict[str, Any]]:
    async with open_system(Settings.load()) as system:
        return await DeadLetterQueue(system.store).groups()


async def _ended(event_type: str, after: int | None) -> tuple[list[Ended], int]:
    """The next ends of migrations behind a position, and the new position; from now on without one.

    Raises CursorAheadError after the store was restored to an earlier state.
    """
    async with open_system(Settings.load()) as system:
        horizon = await system.store.horizon()
        if after is None:
            return [], horizon
        query = EventQuery(
            event_types=(event_type,), after_position=after, to_position=max(horizon, after), limit=BATCH
        )
        events = [event async for event in system.store.read(query)]
        journal = MigrationJournal(system.store.storage)
        ended = [Ended(event, await journal.get(event.aggregate_id)) for event in events]
        return ended, events[-1].position if len(events) == BATCH else max(horizon, after)


async def _waiting(ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    async with open_system(Settings.load()) as system:
        journal = MigrationJournal(system.store.storage)
        return {each: row for each in ids if (row := await journal.get(each)) is not None}


def _tags(event: RecordedEvent) -> dict[str, str]:
    tags = {"migration_id": event.aggregate_id, "source": "sensor"}
    if event.correlation_id is not None:
        tags["correlation_id"] = str(event.correlation_id)
    return tags


def _requests(ended: Ended) -> Iterator[dg.RunRequest]:
    event, place = ended.event, ended.event.position
    asked: list[tuple[dg.JobDefinition, str, dg.Config]] = [
        (
            validate_sequence,
            "validate_sequence",
            SequenceConfig(aggregate_id=event.aggregate_id, model=MIGRATION.name),
        ),
        (snapshot, "create_snapshot", SnapshotConfig(aggregate_id=event.aggregate_id)),
    ]
    if ended.row is not None:  # only what a job migrated has a target that can be named
        asked.append((verify_migration, "verify_target", VerifyConfig(migration_id=event.aggregate_id)))
    for job, op, config in asked:
        yield dg.RunRequest(
            run_key=f"{job.name}-{place}",
            job_name=job.name,
            run_config=dg.RunConfig(ops={op: config}),
            tags=_tags(event),
        )


def _undoing(migration_id: str, position: int) -> dg.RunRequest:
    config = RollbackConfig(migration_id=migration_id, reason=f"it failed at position {position}")
    return dg.RunRequest(
        run_key=f"rollback-{migration_id}-{position}",
        run_config=dg.RunConfig(ops={"roll_back": config}),
        tags={"migration_id": migration_id, "source": "sensor"},
    )
