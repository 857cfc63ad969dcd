"""A migration that failed under `on_failure: rollback` is undone by a job when its own run did not do it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from eventsourcing.bootstrap import open_system
from eventsourcing.catalogue import MigrationFailedEvent
from eventsourcing.testing import a_migration
from pipelines.crashes import crashed_replays
from pipelines.jobs import replay, rollback
from pipelines.sensors import failed_migrations
from resources.migration_journal import MigrationJournal
from tests.pipelines.conftest import Append


def _tick(instance: dg.DagsterInstance, cursor: str | None) -> dg.SensorResult:
    result = failed_migrations(dg.build_sensor_context(instance=instance, cursor=cursor))
    assert isinstance(result, dg.SensorResult)
    return result


def _keys(result: dg.SensorResult) -> list[str]:
    return [str(request.run_key) for request in result.run_requests or []]


async def _row(migration_id: str, **fields: Any) -> None:
    async with open_system() as system:
        journal = MigrationJournal(system.store.storage)
        if await journal.get(migration_id) is None:
            request = {"mapping": "m", "source": "s", "target": migration_id, "on_failure": "rollback"}
            await journal.create(migration_id, request)
        await journal.update(migration_id, **fields)


def _fail(append: Append, migration_id: str) -> int:
    started = a_migration(migration_id)[0]
    failed = MigrationFailedEvent(migration_id=migration_id, error_message="no", error_details={})
    return append([started, failed])[-1].position


@pytest.fixture
def instance(data_dir: Path) -> Any:
    with dg.DagsterInstance.local_temp(str(data_dir)) as made:
        yield made


def test_the_first_tick_starts_from_now_and_nothing_new_asks_for_nothing(
    append: Append, instance: dg.DagsterInstance
) -> None:
    position = _fail(append, "m-1")
    first = _tick(instance, None)
    assert (_keys(first), json.loads(str(first.cursor))["position"]) == ([], position)
    assert _keys(_tick(instance, first.cursor)) == []


def test_what_its_own_run_undoes_is_left_to_it(append: Append, instance: dg.DagsterInstance) -> None:
    run = instance.create_run_for_job(replay, status=dg.DagsterRunStatus.STARTED)
    position = _fail(append, "m-1")
    asyncio.run(_row("m-1", status="failed", dagster_run_id=run.run_id))
    waiting = _tick(instance, '{"position": 0}')
    assert _keys(waiting) == []
    assert json.loads(str(waiting.cursor)) == {"position": position, "waiting": {"m-1": position}}
    asyncio.run(_row("m-1", status="rolled_back"))
    instance.report_run_failed(run)
    done = _tick(instance, waiting.cursor)
    assert (_keys(done), json.loads(str(done.cursor))["waiting"]) == ([], {})


def test_what_its_run_left_undone_is_undone_once(append: Append, instance: dg.DagsterInstance) -> None:
    run = instance.create_run_for_job(replay, status=dg.DagsterRunStatus.STARTED)
    position = _fail(append, "m-1")
    asyncio.run(_row("m-1", status="failed", dagster_run_id=run.run_id))
    waiting = _tick(instance, '{"position": 0}')
    instance.report_run_failed(run)
    asked = _tick(instance, waiting.cursor)
    assert _keys(asked) == [f"rollback-m-1-{position}"]
    assert asked.run_requests is not None
    config = dg.validate_run_config(rollback, asked.run_requests[0].run_config)
    assert config["ops"]["roll_back"]["config"]["migration_id"] == "m-1"
    assert _keys(_tick(instance, asked.cursor)) == []
    assert _keys(_tick(instance, waiting.cursor)) == _keys(asked), "a tick done again asks for the same key"


def test_what_is_to_be_kept_is_kept(append: Append, instance: dg.DagsterInstance) -> None:
    _fail(append, "m-1")
    keep = {"mapping": "m", "source": "s", "target": "t", "on_failure": "keep"}
    asyncio.run(_row("m-1", status="failed", request=keep))
    _fail(append, "nobody's")
    assert _keys(_tick(instance, '{"position": 0}')) == []


def test_a_replay_whose_run_died_is_interrupted(append: Append, instance: dg.DagsterInstance) -> None:
    from eventsourcing.replays import ReplayJournal, ReplayRequest

    async def made(run_id: str) -> str:
        async with open_system() as system:
            journal = ReplayJournal(system.store.storage)
            replay_id = await journal.create(ReplayRequest(replay_type="all"))
            await journal.update(replay_id, dagster_run_id=run_id)
            return replay_id

    async def status(replay_id: str) -> str:
        async with open_system() as system:
            row = await ReplayJournal(system.store.storage).get(replay_id)
            assert row is not None
            return str(row["status"])

    append(a_migration())
    run = instance.create_run_for_job(replay, status=dg.DagsterRunStatus.STARTED)
    replay_id = asyncio.run(made(run.run_id))
    instance.add_run_tags(run.run_id, {"replay_id": replay_id})
    died = instance.get_run_by_id(run.run_id)
    assert died is not None
    event = dg.DagsterEvent(dg.DagsterEventType.RUN_FAILURE.value, "replay", message="killed")
    context = dg.build_run_status_sensor_context(
        sensor_name="crashed_replays", dagster_event=event, dagster_instance=instance, dagster_run=died
    )
    crashed_replays(context.for_run_failure())
    assert asyncio.run(status(replay_id)) == "interrupted"
