"""The embedded launcher on a real home: Dagster's storage on PostgreSQL, runs in worker processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import dagster as dg
import psutil
import pytest

from api.launcher import LOCATION, EmbeddedLauncher, LaunchError, make_launcher
from eventsourcing.bootstrap import open_system
from eventsourcing.config import Settings
from eventsourcing.replays import ReplayJournal, ReplayRequest
from eventsourcing.testing import a_migration
from resources.results import JobResults

WAIT_S = 30.0


@pytest.fixture
def settings(tmp_path: Path, new_database: Callable[[], str]) -> Settings:
    """Two empty databases and a data directory."""
    dagster = new_database().replace("+asyncpg", "+psycopg2")
    return Settings(database_url=new_database(), dagster_database_url=dagster, data_dir=tmp_path)


@pytest.fixture
async def launcher(settings: Settings) -> AsyncIterator[EmbeddedLauncher]:
    """A started launcher."""
    made = EmbeddedLauncher(settings)
    await made.start()
    yield made
    await made.stop()


async def test_a_run_is_executed_with_its_whole_history(
    launcher: EmbeddedLauncher, settings: Settings
) -> None:
    async with open_system(settings) as system:
        await system.store.append_events(a_migration())
        run_id = await launcher.submit("snapshot", _snapshot("r-1"), {"correlation_id": "c-1"})
        assert await launcher.wait(run_id, WAIT_S) is True
        answer = await JobResults(system.store.storage).get("r-1")
    assert answer is not None
    assert answer["result"]["aggregate_id"] == "migration-123"
    run = launcher.instance.get_run_by_id(run_id)
    assert run is not None
    assert run.tags["correlation_id"] == "c-1"
    assert run.remote_job_origin is not None
    assert run.remote_job_origin.location_name == LOCATION
    assert run.job_code_origin is not None
    kinds = {record.event_log_entry.dagster_event_type for record in _records(launcher, run_id)}
    assert {dg.DagsterEventType.STEP_OUTPUT, dg.DagsterEventType.RUN_SUCCESS} <= kinds
    assert await launcher.wait(run_id, 0) is True, "a run that is over is still known"


async def test_a_run_that_fails_says_so(launcher: EmbeddedLauncher) -> None:
    run_id = await launcher.submit("snapshot", _snapshot("r-1"), {})
    assert await launcher.wait(run_id, WAIT_S) is False


@pytest.mark.parametrize(
    ("job", "config", "said"),
    [
        ("snapshot", {"ops": {"create_snapshot": {"config": {}}}}, "aggregate_id"),
        ("snapshot", {"ops": {"unknown": {}}}, "unknown"),
        ("migrate", {"mapping": "m", "source": "s", "on_failure": "explode"}, "on_failure"),
        ("no_such_job", {}, "no_such_job"),
    ],
)
async def test_what_a_job_does_not_take_is_refused_in_one_line(
    settings: Settings, job: str, config: dict[str, object], said: str, refusing: EmbeddedLauncher
) -> None:
    with pytest.raises(LaunchError, match=said) as caught:
        await refusing.submit(job, config, {})
    assert "\n" not in str(caught.value)
    assert refusing.instance.get_runs_count() == 0


@pytest.fixture
async def refusing(launcher: EmbeddedLauncher) -> EmbeddedLauncher:
    """A launcher that has run nothing."""
    return launcher


async def test_a_running_replay_is_cancelled(launcher: EmbeddedLauncher, settings: Settings) -> None:
    async with _slow_replay(settings) as config:
        run_id = await launcher.submit("replay", config, {})
        assert await launcher.wait(run_id, 0.1) is None
        await _until(lambda: _status(launcher, run_id) is dg.DagsterRunStatus.STARTED)
        await asyncio.sleep(0.5)
        await launcher.cancel(run_id)
        assert await launcher.wait(run_id, WAIT_S) is False
        assert _status(launcher, run_id) is dg.DagsterRunStatus.CANCELED
        again = await launcher.submit("replay", {"ops": {"replay_events": {"config": {}}}}, {})
        assert await launcher.wait(again, WAIT_S) is True, "the lane survives"


async def test_what_waits_is_cancelled_before_it_begins(launcher: EmbeddedLauncher) -> None:
    runs = [await launcher.submit("snapshot", _snapshot(f"r-{n}"), {}) for n in range(3)]
    await launcher.cancel(runs[2])
    assert await launcher.wait(runs[2], 0) is False
    assert _status(launcher, runs[2]) is dg.DagsterRunStatus.CANCELED
    assert await launcher.wait(runs[1], WAIT_S) is False


async def test_a_killed_lane_fails_its_run_at_once_and_is_replaced(
    launcher: EmbeddedLauncher, settings: Settings
) -> None:
    async with _slow_replay(settings) as config:
        run_id = await launcher.submit("replay", config, {})
        await _until(lambda: _status(launcher, run_id) is dg.DagsterRunStatus.STARTED)
        (lane,) = [lane for lane in launcher.lanes if lane.running == run_id]
        assert lane.pid is not None
        os.kill(lane.pid, signal.SIGKILL)
        assert await launcher.wait(run_id, WAIT_S) is False
        assert _status(launcher, run_id) is dg.DagsterRunStatus.FAILURE
        again = await launcher.submit("replay", {"ops": {"replay_events": {"config": {}}}}, {})
        assert await launcher.wait(again, WAIT_S) is True


async def test_a_lane_that_died_idle_costs_no_run(launcher: EmbeddedLauncher, settings: Settings) -> None:
    pid = launcher.lanes[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await _until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")
    async with open_system(settings) as system:
        await system.store.append_events(a_migration())
    run_id = await launcher.submit("snapshot", _snapshot("r-1"), {})
    assert await launcher.wait(run_id, WAIT_S) is True


async def test_runs_of_a_dead_server_are_failed_at_the_next_start(
    launcher: EmbeddedLauncher, settings: Settings
) -> None:
    orphan, alive = (_started_run(launcher, process) for process in ("1@0.0", None))
    second = make_launcher(settings)
    await second.start()
    await second.stop()
    assert _status(launcher, orphan) is dg.DagsterRunStatus.FAILURE
    assert _status(launcher, alive) is dg.DagsterRunStatus.STARTED, "its server lives"


async def test_stopping_ends_runs_and_processes(settings: Settings) -> None:
    launcher = EmbeddedLauncher(settings)
    await launcher.start()
    async with _slow_replay(settings) as config:
        run_id = await launcher.submit("replay", config, {})
        await _until(lambda: _status(launcher, run_id) is dg.DagsterRunStatus.STARTED)
        pids = [lane.pid for lane in launcher.lanes if lane.pid is not None]
        instance = launcher.instance
        await launcher.stop()
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.is_finished
    await _until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def _snapshot(result_id: str) -> dict[str, object]:
    return {"ops": {"create_snapshot": {"config": {"aggregate_id": "migration-123", "result_id": result_id}}}}


@contextlib.asynccontextmanager
async def _slow_replay(settings: Settings) -> AsyncIterator[dict[str, object]]:
    """The configuration of a replay that takes minutes."""
    async with open_system(settings) as system:
        await system.store.append_events(a_migration())
        request = ReplayRequest(replay_type="all", batch_size=1, delay_between_batches=20.0)
        replay_id = await ReplayJournal(system.store.storage).create(request)
        yield {"ops": {"replay_events": {"config": {"replay_id": replay_id}}}}


def _started_run(launcher: EmbeddedLauncher, process: str | None) -> str:
    tags = launcher.tags() | ({"esm/process": process} if process else {})
    return dg.DagsterInstance.create_run_for_job(
        launcher.instance, _job(), tags=tags, status=dg.DagsterRunStatus.STARTED
    ).run_id


def _job() -> dg.JobDefinition:
    @dg.job(name="snapshot")
    def empty() -> None:
        """Nothing."""

    return empty


def _status(launcher: EmbeddedLauncher, run_id: str) -> dg.DagsterRunStatus | None:
    run = launcher.instance.get_run_by_id(run_id)
    return None if run is None else run.status


def _records(launcher: EmbeddedLauncher, run_id: str) -> list[dg.EventLogRecord]:
    return list(launcher.instance.get_records_for_run(run_id).records)


async def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
