"""Runs that died: what they left in the rows is set right, so that nobody waits for a run that is gone."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import dagster as dg

from eventsourcing.bootstrap import open_system
from eventsourcing.config import Settings
from eventsourcing.replays import UNFINISHED, ReplayJournal
from pipelines.jobs import migrate, replay, retry_quarantine, rollback
from resources.migration_journal import MigrationJournal


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


@dg.run_failure_sensor(
    monitored_jobs=[replay],
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def crashed_replays(context: dg.RunFailureSensorContext) -> None:
    """Say of a replay whose run died that it was interrupted; it can be resumed."""
    run = context.dagster_run
    replay_id = run.tags.get("replay_id")
    if replay_id is not None and asyncio.run(_interrupt_replay(replay_id, run.run_id)):
        context.log.error("replay %s was interrupted: its run %s died", replay_id, run.run_id)


async def _interrupt(migration_id: str, run_id: str) -> bool:
    async with open_system(Settings.load()) as system:
        return await MigrationJournal(system.store.storage).interrupt(migration_id, run_id)


async def _interrupt_replay(replay_id: str, run_id: str) -> bool:
    """Whether the replay was still this run's, and unfinished."""
    async with open_system(Settings.load()) as system:
        journal = ReplayJournal(system.store.storage)
        row = await journal.get(replay_id)
        if row is None or row["status"] not in UNFINISHED or row.get("dagster_run_id") not in (None, run_id):
            return False
        await journal.update(
            replay_id, status="interrupted", owner=None, failure="its run died", end_time=datetime.now(UTC)
        )
        return True
