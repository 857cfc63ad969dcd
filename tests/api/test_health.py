"""Health: what a service says while the store, Kafka or a worker is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest
import pytest_asyncio

from api import event_service, replay_service
from api import worker as worker_service
from eventsourcing import EventStore, Settings, UserMigratedEvent
from eventsourcing.readmodels import READ_MODELS
from tests.api.conftest import InlineLauncher, free_port, serving
from tests.servers import NEWEST, Server, new_database, server_of

PATHS = ("/livez", "/readyz", "/health")


@pytest.fixture(scope="module")
def stoppable() -> object:
    """A server of this module's own, which it may stop."""
    with server_of(NEWEST) as server:
        server.start("fsync=off")
        yield server


@pytest_asyncio.fixture(params=["event-service", "replay-service", "worker"])
async def service(request: pytest.FixtureRequest, stoppable: Server) -> AsyncIterator[httpx2.AsyncClient]:
    """Each of the three servers over that server, with a broker that is away."""
    url = new_database(stoppable)
    settings = Settings(database_url=url, kafka_bootstrap_servers=f"127.0.0.1:{free_port()}")
    app = {
        "event-service": lambda: event_service.create_app(settings),
        "replay-service": lambda: replay_service.create_app(settings, InlineLauncher(url)),
        "worker": lambda: worker_service.create_app(
            settings.model_copy(update={"kafka_bootstrap_servers": None})
        ),
    }[request.param]()
    async with serving(app) as client:
        yield client


async def statuses(client: httpx2.AsyncClient) -> list[tuple[int, str]]:
    answers = [await client.get(path) for path in PATHS]
    return [(answer.status_code, answer.json()["status"]) for answer in answers]


async def test_a_store_that_is_away_makes_a_service_unready_until_it_is_back(
    service: httpx2.AsyncClient, stoppable: Server
) -> None:
    assert (await statuses(service))[:2] == [(200, "healthy"), (200, "healthy")]
    await asyncio.to_thread(stoppable.stop)
    try:
        assert await statuses(service) == [(200, "healthy"), (503, "unhealthy"), (503, "unhealthy")]
        report = (await service.get("/health")).json()
        assert report["checks"]["store"]["status"] == "down"
    finally:
        await asyncio.to_thread(stoppable.start, "fsync=off")
    assert (await statuses(service))[1] == (200, "healthy")


async def test_kafka_that_is_away_leaves_a_service_ready_and_degraded(store_url: str) -> None:
    settings = Settings(
        database_url=store_url, kafka_bootstrap_servers=f"127.0.0.1:{free_port()},127.0.0.1:{free_port()}"
    )
    async with serving(event_service.create_app(settings)) as client:
        assert await statuses(client) == [(200, "healthy"), (200, "healthy"), (200, "degraded")]
        assert (await client.get("/health")).json()["checks"]["kafka"] == {"status": "down"}
        stored = await client.post(
            "/events",
            json={
                "event_type": "migration.started",
                "aggregate_id": "m",
                "aggregate_type": "migration",
                "data": {"source_config": {}, "target_config": {}},
            },
        )
        assert stored.status_code == 201


async def test_a_stalled_worker_shows_by_the_age_of_what_it_left(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventsourcing.lag.STALLED_S", 0.1)
    async with serving(event_service.create_app(Settings(database_url=store_url))) as client:
        system = client._transport.app.state.system  # type: ignore[attr-defined]  # what it opened
        store: EventStore = system.store
        await store.append_event(UserMigratedEvent(user_id="u", username="u", source_data={}, target_data={}))
        await asyncio.sleep(0.2)
        report = (await client.get("/health")).json()
        assert report["status"] == "degraded"
        assert report["checks"]["read_models"]["status"] == "stalled"
        assert report["checks"]["read_models"]["lag_seconds"] > 0.1
        assert (await client.get("/readyz")).status_code == 200
        for model in READ_MODELS:
            await model.catch_up(store.storage)
        assert (await client.get("/health")).json()["status"] == "healthy"
