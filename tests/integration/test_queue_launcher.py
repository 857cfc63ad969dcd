"""The launcher over a real Dagster deployment: webserver, daemon and run queue as processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import httpx2
import pytest
import pytest_asyncio

from api import launcher as launching
from api.launcher import REQUEST, LaunchError, NotReadyError, StartedOnDemand, make_launcher
from api.queue_launcher import QueueLauncher
from api.readiness import readiness
from eventsourcing.bootstrap import open_system
from eventsourcing.config import Settings
from eventsourcing.replays import ReplayJournal, ReplayRequest
from eventsourcing.storage.embedded import EmbeddedPostgres
from eventsourcing.testing import a_migration
from resources.dagster_home import LOCATION, prepare_dagster_home, workspace_file
from tests.api.conftest import free_port
from tests.faults.proxy import Link, Proxy, proxy_to
from tests.integration.launching import launcher_settings
from tests.waiting import until

ROOT = Path(__file__).parents[2]
WAIT_S = 90.0

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def settings(postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("home")
    return launcher_settings(postgres_server, home, dagster_port=free_port(), launcher="queue")


@pytest.fixture(scope="module")
def deployment(settings: Settings) -> Iterator[None]:
    """A webserver and a daemon on the home of these settings."""
    environment = {**os.environ, **prepare_dagster_home(settings), "PYTHONPATH": str(ROOT)}
    tool, workspace = Path(sys.executable).parent, str(workspace_file(settings))
    commands = [
        (
            *(sys.executable, "-m", "api.dagster_door"),
            "-h",
            "127.0.0.1",
            "-p",
            str(settings.dagster_port),
            "-w",
            workspace,
        ),
        (str(tool / "dagster-daemon"), "run", "-w", workspace),
    ]
    log = (settings.data_dir / "dagster.log").open("wb")
    running = [
        subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        for command in commands
    ]
    try:
        _answers(f"http://127.0.0.1:{settings.dagster_port}/server_info", running)
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        log.close()


def _answers(url: str, running: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            if httpx2.get(url, timeout=2).is_success:
                return
        except httpx2.HTTPError:
            pass
        assert all(process.poll() is None for process in running), "a process of Dagster ended"
        assert time.monotonic() < deadline, "Dagster's webserver does not answer"
        time.sleep(0.2)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def launcher(settings: Settings, deployment: None) -> AsyncIterator[QueueLauncher]:
    async with open_system(settings) as system:
        await system.store.append_events(a_migration())
    made = make_launcher(settings)
    assert isinstance(made, QueueLauncher)
    await made.start()
    yield made
    await made.stop()


async def _replay(settings: Settings, **request: Any) -> tuple[str, dict[str, Any]]:
    async with open_system(settings) as system:
        replay_id = await ReplayJournal(system.store.storage).create(
            ReplayRequest(replay_type="all", **request)
        )
    return replay_id, {"ops": {"replay_events": {"config": {"replay_id": replay_id}}}}


async def _status(settings: Settings, replay_id: str) -> str:
    async with open_system(settings) as system:
        row = await ReplayJournal(system.store.storage).get(replay_id)
    assert row is not None
    return str(row["status"])


async def test_a_long_job_goes_through_the_queue(launcher: QueueLauncher, settings: Settings) -> None:
    replay_id, config = await _replay(settings)
    run_id = await launcher.submit("replay", config, {"replay_id": replay_id})
    assert await launcher.wait(run_id, 0) is None
    assert await launcher.wait(run_id, WAIT_S) is True
    assert await _status(settings, replay_id) == "completed"
    run = launcher.instance.get_run_by_id(run_id)
    assert run is not None
    assert run.tags["replay_id"] == replay_id
    assert run.tags["esm/launcher"] == "queue"
    assert run.remote_job_origin is not None
    assert run.remote_job_origin.location_name == LOCATION
    kinds = {
        record.event_log_entry.dagster_event_type
        for record in launcher.instance.get_records_for_run(run_id).records
    }
    assert {dg.DagsterEventType.PIPELINE_ENQUEUED, dg.DagsterEventType.RUN_SUCCESS} <= kinds


async def test_a_running_job_is_ended_where_it_runs(launcher: QueueLauncher, settings: Settings) -> None:
    replay_id, config = await _replay(settings, batch_size=1, delay_between_batches=10.0)
    run_id = await launcher.submit("replay", config, {"replay_id": replay_id})
    async with asyncio.timeout(WAIT_S):
        while await _status(settings, replay_id) != "running":  # noqa: ASYNC110 - another process's row
            await asyncio.sleep(0.1)
    await launcher.cancel(run_id)
    assert await launcher.wait(run_id, WAIT_S) is False
    run = launcher.instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.CANCELED
    async with asyncio.timeout(WAIT_S):  # nobody beats for it any more
        while await _status(settings, replay_id) not in ("cancelled", "interrupted"):  # noqa: ASYNC110 - asks the row
            await asyncio.sleep(0.5)


async def test_what_waits_in_the_queue_never_begins(launcher: QueueLauncher, settings: Settings) -> None:
    replay_id, config = await _replay(settings)
    run_id = await launcher.submit("replay", config, {})
    await launcher.cancel(run_id)
    assert await launcher.wait(run_id, WAIT_S) in (False, True)  # it may have begun already
    run = launcher.instance.get_run_by_id(run_id)
    assert run is not None
    if run.status is dg.DagsterRunStatus.CANCELED:
        assert await _status(settings, replay_id) in ("pending", "cancelled", "interrupted")


async def test_short_jobs_do_not_wait_for_the_queue(launcher: QueueLauncher) -> None:
    config = {"ops": {"create_snapshot": {"config": {"aggregate_id": "migration-123", "result_id": "r"}}}}
    run_id = await launcher.submit("snapshot", config, {})
    assert await launcher.wait(run_id, WAIT_S) is True
    run = launcher.instance.get_run_by_id(run_id)
    assert run is not None
    assert run.tags["esm/launcher"] == "embedded"


@pytest.mark.parametrize(
    ("job", "config", "said"),
    [("replay", {"ops": {"unknown": {}}}, "unknown"), ("no_such_job", {}, "no_such_job")],
)
async def test_what_a_job_does_not_take_is_refused_in_one_line(
    launcher: QueueLauncher, job: str, config: dict[str, Any], said: str
) -> None:
    with pytest.raises(LaunchError, match=said) as caught:
        await launcher.submit(job, config, {})
    assert "\n" not in str(caught.value)


async def test_without_a_webserver_nothing_starts(settings: Settings) -> None:
    alone = QueueLauncher(settings.model_copy(update={"dagster_port": free_port()}))
    with pytest.raises(LaunchError, match="does not answer"):
        await alone.submit("replay", {}, {})
    await alone.stop()


async def test_the_webserver_is_ready_once_it_has_the_jobs(settings: Settings, deployment: None) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await readiness(settings)()
                break
            except NotReadyError:
                await asyncio.sleep(0.2)
    elsewhere = settings.model_copy(update={"dagster_port": free_port()})
    with pytest.raises(NotReadyError, match="does not answer"):
        await readiness(elsewhere)()


async def test_a_request_finds_the_run_that_was_queued_for_it(
    launcher: QueueLauncher, settings: Settings
) -> None:
    _, config = await _replay(settings)
    run_id = await launcher.submit("replay", config, {REQUEST: "asked-once"})
    assert await launcher.find("asked-once") == run_id
    assert await launcher.find("never-asked") is None
    assert await launcher.wait(run_id, WAIT_S) is True
    assert await launcher.find("asked-once") == run_id


FOREIGN = [
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {"Origin": "https://evil.example"},
    {"Host": "evil.example"},
]


@pytest.mark.parametrize("sent", FOREIGN)
async def test_a_foreign_page_starts_nothing_and_reads_nothing(
    settings: Settings, deployment: None, sent: dict[str, str]
) -> None:
    del deployment
    asked = {"query": "mutation { setNuxSeen }"}
    url = f"http://127.0.0.1:{settings.dagster_port}"
    socket = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    socket |= {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Protocol": "graphql-ws"}
    async with httpx2.AsyncClient(base_url=url, timeout=30) as client:
        assert (await client.get("/graphql", params=asked, headers=sent)).status_code == 403
        assert (await client.post("/graphql", params=asked, headers=sent)).status_code == 403
        assert (await client.get("/graphql", headers={**socket, **sent})).status_code == 403
        own = {"Origin": url, "Sec-Fetch-Site": "same-origin"}
        assert (await client.post("/graphql", json=asked, headers=own)).json()["data"] == {"setNuxSeen": True}


async def test_a_webserver_that_was_away_is_used_again(
    settings: Settings, deployment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen from a service: told while it is away, and nobody has to restart anything."""
    monkeypatch.setattr(launching, "CHECK_S", 0.5)
    async with proxy_to(settings.dagster_port) as network:
        reached = settings.model_copy(update={"dagster_url": f"http://127.0.0.1:{network.port}"})
        jobs = StartedOnDemand(lambda: QueueLauncher(reached), ready=readiness(reached))
        jobs.look_ahead()
        try:
            await until(lambda: jobs.report()["status"] == "idle")
            _away(network)
            await until(lambda: jobs.report()["status"] == "down")
            with pytest.raises(LaunchError):
                await jobs.started()
            network.link = Link.WHOLE
            await until(lambda: jobs.report()["status"] == "up")  # needed once, it is started from now on
            made = await jobs.started()
            _away(network)
            await until(lambda: jobs.report()["status"] == "down")
            _, config = await _replay(settings)
            with pytest.raises(LaunchError):
                await made.submit("replay", config, {})
            network.link = Link.WHOLE
            await until(lambda: jobs.report()["status"] == "up")
            assert await made.wait(await made.submit("replay", config, {}), WAIT_S) is True
        finally:
            await jobs.stop()


def _away(network: Proxy) -> None:
    network.link = Link.REFUSES
    network.cut()
