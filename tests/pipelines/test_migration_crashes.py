"""A run that died: its migration reads as interrupted and is reported; one that failed in order is not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from eventsourcing.bootstrap import open_system
from pipelines.crashes import crashed_migrations
from pipelines.jobs import migrate
from resources.migration_journal import MigrationJournal
from tests.pipelines.conftest import RunJob

REQUEST = {"mapping": "panel", "source": "panel.db", "target": "target", "on_failure": "keep"}


async def row_after(
    status: str, run_id: str, instance: dg.DagsterInstance, run: dg.DagsterRun
) -> dict[str, Any]:
    async with open_system() as system:
        await system.store.initialize()
        journal = MigrationJournal(system.store.storage)
        if await journal.get("m-1") is None:
            await journal.create("m-1", REQUEST)
        await journal.update("m-1", status=status, dagster_run_id=run_id)
    await asyncio.to_thread(tick, instance, run)
    async with open_system() as system:
        return await MigrationJournal(system.store.storage).get("m-1") or {}


def tick(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """One evaluation of the sensor for a run that failed."""
    event = dg.DagsterEvent(
        event_type_value="PIPELINE_FAILURE", job_name="migrate", event_specific_data=None, message="died"
    )
    context = dg.build_run_status_sensor_context(
        sensor_name="crashed_migrations", dagster_event=event, dagster_instance=instance, dagster_run=run
    ).for_run_failure()
    crashed_migrations(context)


@pytest.fixture
def instance(data_dir: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def test_what_a_dead_run_leaves_is_interrupted(instance: dg.DagsterInstance) -> None:
    run = instance.create_run_for_job(migrate, run_config=REQUEST, tags={"migration_id": "m-1"})
    died = asyncio.run(row_after("running", run.run_id, instance, run))
    assert (died["status"], died["interrupted"], died["failure"]) == (
        "interrupted",
        "running",
        "its process died",
    )
    undoing = asyncio.run(row_after("rolling_back", run.run_id, instance, run))
    assert (undoing["status"], undoing["interrupted"]) == ("interrupted", "rolling_back")


@pytest.mark.parametrize("status", ["failed", "completed", "cancelled"])
def test_what_ended_in_order_is_left_alone(instance: dg.DagsterInstance, status: str) -> None:
    run = instance.create_run_for_job(migrate, run_config=REQUEST, tags={"migration_id": "m-1"})
    assert asyncio.run(row_after(status, run.run_id, instance, run))["status"] == status
    other = asyncio.run(row_after("running", "a later run", instance, run))
    assert other["status"] == "running", "the migration goes on in another run"


def test_a_name_that_is_gone_fails_the_migration_that_waits(run_job: RunJob) -> None:
    async def row(*, create: bool) -> dict[str, Any]:
        async with open_system() as system:
            await system.store.initialize()
            journal = MigrationJournal(system.store.storage)
            if create:
                await journal.create("m-1", REQUEST)
            return await journal.get("m-1") or {}

    assert asyncio.run(row(create=True))["status"] == "queued"
    assert not run_job("migrate", {**REQUEST, "migration_id": "m-1"}).success
    failed = asyncio.run(row(create=False))
    assert (failed["status"], failed["failure"]) == ("failed", "no mapping 'panel'")
