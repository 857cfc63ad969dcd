"""What happens when an event arrives, or cannot be handled: sensors over the event store.

The cursor of a sensor that follows the store is the position up to which it has asked for its runs. A
fresh home starts at the horizon of that moment: what was before it is history. What is parked is no
history but stands now, so a fresh home is told of it. Run keys say what a run is for, so a tick that is
evaluated again asks for nothing twice.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import dagster as dg

from eventsourcing.bootstrap import open_system
from eventsourcing.catalogue import MIGRATION_SEQUENCE
from eventsourcing.config import Settings
from eventsourcing.dead_letter_queue import DeadLetterQueue
from eventsourcing.events import EventType, RecordedEvent
from eventsourcing.query import EventQuery
from pipelines.config import RedriveConfig, SequenceConfig, SnapshotConfig
from pipelines.jobs import migrate, redrive, retry_quarantine, rollback, snapshot, validate_sequence
from resources.migration_journal import MigrationJournal

_SEQUENCE = [str(event_type) for event_type in MIGRATION_SEQUENCE]

BATCH = 20
"""How many events one tick reacts to; the next tick goes on behind them."""


@dg.sensor(
    jobs=[validate_sequence, snapshot],
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def completed_migrations(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Validate the sequence of each migration that completes, and keep a snapshot of it."""
    after = int(context.cursor) if context.cursor is not None else None
    events, position = asyncio.run(_completed(after))
    requests = [request for event in events for request in _requests(event)]
    note = None if requests else f"nothing completed up to position {position}"
    return dg.SensorResult(run_requests=requests, skip_reason=note, cursor=str(position))


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
    note = None if new else f"nothing new; {len(failed)} causes are known"
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


@dg.run_failure_sensor(
    monitored_jobs=[migrate, retry_quarantine, rollback],
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def crashed_migrations(context: dg.RunFailureSensorContext) -> None:
    """Say of a migration whose run died that it was interrupted, and report it; a person may resume it.

    A run that failed in order has said so itself, and is left as it is.
    """
    run = context.dagster_run
    migration_id = run.tags.get("migration_id")
    if migration_id is not None and asyncio.run(_interrupt(migration_id, run.run_id)):
        context.log.error("migration %s was interrupted: its run %s died", migration_id, run.run_id)


async def _interrupt(migration_id: str, run_id: str) -> bool:
    async with open_system(Settings.load()) as system:
        return await MigrationJournal(system.store.storage).interrupt(migration_id, run_id)


async def _completed(after: int | None) -> tuple[list[RecordedEvent], int]:
    """The next completions behind a position and the new position; from now on without one.

    Raises CursorAheadError after the store was restored to an earlier state.
    """
    async with open_system(Settings.load()) as system:
        horizon = await system.store.horizon()
        if after is None:
            return [], horizon
        query = EventQuery(
            event_types=(EventType.MIGRATION_COMPLETED,),
            after_position=after,
            to_position=max(horizon, after),
            limit=BATCH,
        )
        events = [event async for event in system.store.read(query)]
        return events, events[-1].position if len(events) == BATCH else max(horizon, after)


def _requests(event: RecordedEvent) -> Iterator[dg.RunRequest]:
    migration_id = event.aggregate_id
    tags = {"migration_id": migration_id, "source": "sensor"}
    if event.correlation_id is not None:
        tags["correlation_id"] = str(event.correlation_id)
    sequence = SequenceConfig(aggregate_id=migration_id, expected_sequence=_SEQUENCE)
    yield dg.RunRequest(
        run_key=f"validate-{event.position}",
        job_name=validate_sequence.name,
        run_config=dg.RunConfig(ops={"validate_sequence": sequence}),
        tags=tags,
    )
    yield dg.RunRequest(
        run_key=f"snapshot-{event.position}",
        job_name=snapshot.name,
        run_config=dg.RunConfig(ops={"create_snapshot": SnapshotConfig(aggregate_id=migration_id)}),
        tags=tags,
    )
