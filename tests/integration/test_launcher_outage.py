"""Services whose Dagster is away or whose lanes are broken say so, do the rest, and recover by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio

from api import event_service, launcher, replay_service
from api.embedded_launcher import EmbeddedLauncher
from eventsourcing import Settings
from eventsourcing.testing import a_migration
from tests.api.conftest import append, assert_problem, free_port, serving
from tests.servers import NEWEST, Server, new_database, server_of
from tests.waiting import BOUND_S

SNAPSHOT = {"aggregate_id": "migration-123"}

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def dagster_server() -> Iterator[Server]:
    """A PostgreSQL server for Dagster's storage alone, which a test may stop."""
    with server_of(NEWEST) as server:
        server.start("fsync=off")
        yield server


@pytest_asyncio.fixture
async def settings(
    store_url: str, dagster_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Settings]:
    monkeypatch.setattr(launcher, "CHECK_S", 0.5)
    await append(store_url, a_migration())
    url = new_database(dagster_server).replace("+asyncpg", "+psycopg2")
    yield Settings(database_url=store_url, dagster_database_url=url, data_dir=tmp_path)


async def until(client: httpx2.AsyncClient, status: str, *, jobs: str | None = None) -> dict[str, str]:
    """What `/health` says of jobs once the service, and what it says of them, have come to these states."""
    async with asyncio.timeout(BOUND_S):
        while True:
            report = (await client.get("/health")).json()
            found: dict[str, str] = report["checks"]["jobs"]
            is_known = found["status"] not in ("starting", "unknown")
            if report["status"] == status and is_known and jobs in (None, found["status"]):
                return found
            await asyncio.sleep(0.1)


async def refused(client: httpx2.AsyncClient) -> None:
    """Require that what needs a job is refused for now, and the rest is done."""
    response = await client.post("/snapshot", json=SNAPSHOT)
    assert_problem(response, 503, "unavailable")
    assert int(response.headers["retry-after"]) >= 1
    assert_problem(await client.post("/replay", json={"replay_type": "all"}), 503, "unavailable")
    assert (await client.get("/readyz")).status_code == 200
    assert (await client.get("/replay")).status_code == 200


async def test_a_service_whose_dagster_is_away_shows_it_and_recovers(
    settings: Settings, dagster_server: Server
) -> None:
    await asyncio.to_thread(dagster_server.stop)
    async with serving(replay_service.create_app(settings)) as client:
        jobs = await until(client, "degraded")
        assert jobs["status"] == "down"
        assert jobs["reason"].startswith("the launcher does not start: ")
        await refused(client)

        await asyncio.to_thread(dagster_server.start, "fsync=off")
        assert await until(client, "healthy") == {"status": "up"}
        assert (await client.post("/snapshot", json=SNAPSHOT, timeout=60)).status_code == 201

        await asyncio.to_thread(dagster_server.stop)
        jobs = await until(client, "degraded")
        assert jobs["reason"].startswith("the launcher cannot execute: ")
        await refused(client)

        await asyncio.to_thread(dagster_server.start, "fsync=off")
        await until(client, "healthy")
        assert (await client.post("/snapshot", json=SNAPSHOT, timeout=60)).status_code == 201


async def test_the_event_service_tells_of_it_before_a_job_is_asked_for(
    settings: Settings, dagster_server: Server
) -> None:
    rebuild = "/read-models/user-migrations/rebuild"
    async with serving(event_service.create_app(settings)) as client:
        assert await until(client, "healthy", jobs="idle") == {"status": "idle"}
        await asyncio.to_thread(dagster_server.stop)
        jobs = await until(client, "degraded")
        assert jobs["reason"] == "the launcher does not start: Dagster's storage does not answer"
        assert_problem(await client.post(rebuild, timeout=60), 503, "unavailable")
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/events")).status_code == 200
        await asyncio.to_thread(dagster_server.start, "fsync=off")
        await until(client, "healthy")
        assert (await client.post(rebuild, timeout=60)).status_code == 202


async def test_a_wrong_address_of_the_webserver_is_told_before_a_job_is_asked_for(
    settings: Settings,
) -> None:
    wrong = settings.model_copy(
        update={"launcher": "queue", "dagster_url": f"http://127.0.0.1:{free_port()}"}
    )
    async with serving(event_service.create_app(wrong)) as client:
        jobs = await until(client, "degraded")
        assert jobs["reason"] == "the launcher does not start: Dagster's webserver does not answer"
        assert (await client.get("/readyz")).status_code == 200


@pytest.fixture
def broken_lanes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Jobs whose processes end as they begin, while this is told to be so."""
    marker = tmp_path / "broken"
    monkeypatch.setenv("BROKEN_LANES", str(marker))
    return lambda broken: marker.touch() if broken else marker.unlink()


async def test_lanes_that_break_show_and_are_replaced(
    settings: Settings, broken_lanes: Callable[[bool], None]
) -> None:
    made = EmbeddedLauncher(settings, definitions="tests.integration.breakable_jobs")
    async with serving(replay_service.create_app(settings, made)) as client:
        assert await until(client, "healthy") == {"status": "up"}
        broken_lanes(True)
        for lane in made.lanes:
            lane.end()
        response = await client.post("/snapshot", json=SNAPSHOT, timeout=60)
        assert_problem(response, 503, "unavailable")
        assert (await until(client, "degraded"))["reason"].startswith("the launcher cannot execute: ")
        assert (await client.get("/readyz")).status_code == 200

        broken_lanes(False)
        await until(client, "healthy")
        assert (await client.post("/snapshot", json=SNAPSHOT, timeout=60)).status_code == 201
