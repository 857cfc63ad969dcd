"""The embedded launcher on a real home: Dagster's storage on PostgreSQL, runs in worker processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import dagster as dg
import psutil
import pytest
import pytest_asyncio

from api.embedded_launcher import EmbeddedLauncher
from api.jobs import settle_replays
from api.launcher import REQUEST, LaunchError
from eventsourcing.bootstrap import open_system
from eventsourcing.config import Settings
from eventsourcing.replays import ReplayJournal, ReplayRequest
from eventsourcing.storage.embedded import EmbeddedPostgres
from eventsourcing.testing import a_migration
from resources.dagster_home import LOCATION, prepare_dagster_home
from resources.results import JobResults
from tests.integration.launching import launcher_settings
from tests.waiting import BOUND_S, until

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def settings(postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Two empty databases and a data directory, shared by the tests: a launcher takes seconds to warm."""
    return launcher_settings(postgres_server, tmp_path_factory.mktemp("home"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def launcher(settings: Settings) -> AsyncIterator[EmbeddedLauncher]:
    """A started launcher over a store with one migration."""
    async with open_system(settings) as system:
        await system.store.append_events(a_migration())
    made = EmbeddedLauncher(settings)
    await made.start()
    yield made
    await made.stop()


async def test_a_run_is_executed_with_its_whole_history(
    launcher: EmbeddedLauncher, settings: Settings
) -> None:
    run_id = await launcher.submit("snapshot", _snapshot("r-1"), {"correlation_id": "c-1"})
    assert await launcher.wait(run_id, BOUND_S) is True
    async with open_system(settings) as system:
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


async def test_a_request_finds_the_run_that_was_made_for_it(launcher: EmbeddedLauncher) -> None:
    run_id = await launcher.submit("snapshot", _snapshot("r-0"), {REQUEST: "asked-once"})
    assert await launcher.find("asked-once") == run_id
    assert await launcher.find("never-asked") is None
    assert await launcher.wait(run_id, BOUND_S) is True
    assert await launcher.find("asked-once") == run_id


async def test_a_run_that_fails_says_so(launcher: EmbeddedLauncher) -> None:
    run_id = await launcher.submit("snapshot", _snapshot("r-2", of="nobody"), {})
    assert await launcher.wait(run_id, BOUND_S) is False
    assert _status(launcher, run_id) is dg.DagsterRunStatus.FAILURE


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
    launcher: EmbeddedLauncher, job: str, config: dict[str, object], said: str
) -> None:
    before = launcher.instance.get_runs_count()
    with pytest.raises(LaunchError, match=said) as caught:
        await launcher.submit(job, config, {})
    assert "\n" not in str(caught.value)
    assert launcher.instance.get_runs_count() == before


async def test_a_running_replay_ends_in_good_order_when_cancelled(
    launcher: EmbeddedLauncher, settings: Settings
) -> None:
    async with open_system(settings) as system:
        journal = ReplayJournal(system.store.storage)
        request = ReplayRequest(replay_type="all", batch_size=1, delay_between_batches=0.6)
        replay_id = await journal.create(request)
        config = {"ops": {"replay_events": {"config": {"replay_id": replay_id}}}}
        run_id = await launcher.submit("replay", config, {})
        await until(lambda: _status(launcher, run_id) is dg.DagsterRunStatus.STARTED)
        await launcher.cancel(run_id)
        assert await launcher.wait(run_id, BOUND_S) is False
        assert _status(launcher, run_id) is dg.DagsterRunStatus.CANCELED
        row = await journal.get(replay_id)
    assert row is not None
    assert row["status"] == "cancelled"


async def test_a_run_that_does_not_listen_is_interrupted(
    launcher: EmbeddedLauncher, settings: Settings
) -> None:
    async with _slow_replay(settings) as config:
        run_id = await launcher.submit("replay", config, {})
        assert await launcher.wait(run_id, 0.1) is None
        await until(lambda: _status(launcher, run_id) is dg.DagsterRunStatus.STARTED)
        await asyncio.sleep(0.5)
        await launcher.cancel(run_id)
        assert await launcher.wait(run_id, BOUND_S) is False
        assert _status(launcher, run_id) is dg.DagsterRunStatus.CANCELED
        again = await launcher.submit("replay", {"ops": {"replay_events": {"config": {}}}}, {})
        assert await launcher.wait(again, BOUND_S) is True, "the lane survives"


async def test_what_waits_is_cancelled_before_it_begins(launcher: EmbeddedLauncher) -> None:
    runs = [await launcher.submit("snapshot", _snapshot(f"r-{n}"), {}) for n in range(3)]
    await launcher.cancel(runs[2])
    assert await launcher.wait(runs[2], 0) is False
    assert _status(launcher, runs[2]) is dg.DagsterRunStatus.CANCELED
    assert await launcher.wait(runs[1], BOUND_S) is True


async def test_a_killed_lane_fails_its_run_at_once_and_is_replaced(
    launcher: EmbeddedLauncher, settings: Settings
) -> None:
    async with _slow_replay(settings) as config:
        run_id = await launcher.submit("replay", config, {})
        await until(lambda: _status(launcher, run_id) is dg.DagsterRunStatus.STARTED)
        (lane,) = [lane for lane in launcher.lanes if lane.running == run_id]
        assert lane.pid is not None
        os.kill(lane.pid, signal.SIGKILL)
        assert await launcher.wait(run_id, BOUND_S) is False
        assert _status(launcher, run_id) is dg.DagsterRunStatus.FAILURE
        again = await launcher.submit("replay", {"ops": {"replay_events": {"config": {}}}}, {})
        assert await launcher.wait(again, BOUND_S) is True


async def test_a_lane_that_died_idle_costs_no_run(launcher: EmbeddedLauncher) -> None:
    pid = launcher.lanes[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not _runs(pid))
    run_id = await launcher.submit("snapshot", _snapshot("r-3"), {})
    assert await launcher.wait(run_id, BOUND_S) is True


async def test_lanes_end_with_a_server_that_is_killed(settings: Settings) -> None:
    """kill -9 of a server: its lanes exit, and the next server on the host fails the run."""
    environment = await asyncio.to_thread(prepare_dagster_home, settings)
    async with _slow_replay(settings) as config:
        server = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _SERVER,
            json.dumps(config),
            cwd=ROOT,
            env=os.environ | environment,
            stdout=asyncio.subprocess.PIPE,
        )
        assert server.stdout is not None
        run_id, *pids = (await server.stdout.readline()).decode().split()
        server.kill()
        await server.wait()
        await until(lambda: not any(_runs(int(pid)) for pid in pids))
    next_server = EmbeddedLauncher(settings)
    await next_server.start()
    assert _status(next_server, run_id) is dg.DagsterRunStatus.FAILURE
    await next_server.stop()


_SERVER = """
import asyncio, json, sys
from api.embedded_launcher import EmbeddedLauncher
from eventsourcing.config import Settings

async def serve():
    launcher = EmbeddedLauncher(Settings.load())
    await launcher.start()
    run_id = await launcher.submit("replay", json.loads(sys.argv[1]), {})
    while not launcher.instance.get_run_by_id(run_id).status.value == "STARTED":
        await asyncio.sleep(0.05)
    print(run_id, *(lane.pid for lane in launcher.lanes if lane.pid), flush=True)
    await asyncio.sleep(600)

if __name__ == "__main__":
    asyncio.run(serve())
"""


async def test_a_next_server_fails_the_runs_of_a_dead_one_and_ends_its_own(
    launcher: EmbeddedLauncher, settings: Settings
) -> None:
    orphan, alive = (_started_run(launcher, process) for process in ("1@0.0", None))
    second = EmbeddedLauncher(settings)
    await second.start()
    assert _status(launcher, orphan) is dg.DagsterRunStatus.FAILURE
    assert _status(launcher, alive) is dg.DagsterRunStatus.STARTED, "its server lives"
    async with _slow_replay(settings) as config:
        run_id = await second.submit("replay", config, {})
        await until(lambda: _status(launcher, run_id) is dg.DagsterRunStatus.STARTED)
        pids = [lane.pid for lane in second.lanes if lane.pid is not None]
        await second.stop()
    assert _status(launcher, run_id) is dg.DagsterRunStatus.CANCELED
    await until(lambda: not any(_runs(pid) for pid in pids))


async def test_a_replay_that_waits_for_a_run_that_is_over_is_interrupted(
    launcher: EmbeddedLauncher, settings: Settings
) -> None:
    over, alive = (_started_run(launcher, None) for _ in range(2))
    run = launcher.instance.get_run_by_id(over)
    assert run is not None
    launcher.instance.report_run_failed(run)
    async with open_system(settings) as system:
        journal = ReplayJournal(system.store.storage)
        replays = {run_id: await journal.create(ReplayRequest(replay_type="all")) for run_id in (over, alive)}
        for run_id, replay_id in replays.items():
            await journal.update(replay_id, dagster_run_id=run_id)
        await settle_replays(system.store, launcher)
        rows = {run_id: await journal.get(replay_id) for run_id, replay_id in replays.items()}
        await journal.update(replays[alive], status="cancelled")
    assert {run_id: row and row["status"] for run_id, row in rows.items()} == {
        over: "interrupted",
        alive: "pending",
    }


async def test_runs_of_the_short_lane_share_a_system_until_one_fails(launcher: EmbeddedLauncher) -> None:
    """What a run leaves behind in a kept system must not reach the next: one that fails ends it."""
    for number, (aggregate, ends_well) in enumerate(
        [("migration-123", True), ("nobody", False), ("migration-123", True), ("migration-123", True)]
    ):
        run_id = await launcher.submit("snapshot", _snapshot(f"shared-{number}", of=aggregate), {})
        assert await launcher.wait(run_id, BOUND_S) is ends_well


def _snapshot(result_id: str, *, of: str = "migration-123") -> dict[str, object]:
    return {"ops": {"create_snapshot": {"config": {"aggregate_id": of, "result_id": result_id}}}}


def _runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@contextlib.asynccontextmanager
async def _slow_replay(settings: Settings) -> AsyncIterator[dict[str, object]]:
    """The configuration of a replay that takes minutes."""
    async with open_system(settings) as system:
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
