"""The operators' calls on read models, against the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from api import event_service
from eventsourcing import EventStore, Settings
from eventsourcing.readmodels import USER_MIGRATIONS_MODEL
from eventsourcing.storage.embedded import EmbeddedPostgres
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.testing import a_migration
from tests.api.conftest import InlineLauncher, assert_problem, serving
from tests.waiting import BOUND_S

pytestmark = pytest.mark.asyncio(loop_scope="session")

NAME = "user-migrations"


@pytest.fixture(scope="module")
def own_database(postgres_server: EmbeddedPostgres) -> str:
    """A database of its own: a switch is seen by everybody."""
    postgres_server.ensure_database("read_models")
    return postgres_server.url("read_models")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def store(own_database: str) -> AsyncIterator[EventStore]:
    async with EventStore(storage=PostgresStorage(own_database, pool_size=2)) as made:
        await made.append_events(a_migration("m-1", users=5))
        await USER_MIGRATIONS_MODEL.catch_up(made.storage)
        async with made.storage.transaction() as transaction:
            wrong = {f"user-m-1-{n}": {"username": f"wrong{n}"} for n in (2, 4)}
            await transaction.put_many(USER_MIGRATIONS_MODEL.table, wrong)
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(own_database: str, store: EventStore) -> AsyncIterator[httpx2.AsyncClient]:
    settings = Settings(database_url=own_database)
    async with serving(event_service.create_app(settings, InlineLauncher(own_database))) as made:
        yield made


async def test_a_wrong_read_model_is_rebuilt_compared_switched_and_switched_back(
    client: httpx2.AsyncClient, store: EventStore
) -> None:
    listed = (await client.get("/read-models")).json()["read_models"]
    assert [row["name"] for row in listed] == [
        "event-statistics", "migration-statistics", "user-migrations", "admin-migrations",
    ]  # fmt: skip
    assert_problem(await client.post(f"/read-models/{NAME}/switch"), 409, "conflict")
    assert_problem(await client.get(f"/read-models/{NAME}/differences"), 409, "conflict")

    started = await client.post(f"/read-models/{NAME}/rebuild")
    assert started.status_code == 202, started.text
    assert started.json().keys() == {"name", "status", "dagster_run_id", "message"}
    row = await ready(client, NAME)
    assert row["beside"]["difference"]["changed"] == row["beside"]["difference"]["rows"] == 2
    first = await client.get(f"/read-models/{NAME}/differences", params={"limit": 1})
    second = await client.get(first.links["next"]["url"])
    rows = [*first.json(), *second.json()]
    assert "next" not in second.links
    assert [one["key"] for one in rows] == ["user-m-1-2", "user-m-1-4"]
    assert rows[0]["old"] == {"username": "wrong2"}
    assert (await client.get("/users/migrations")).json()["user-m-1-2"]["username"] == "wrong2"

    there = await client.post(f"/read-models/{NAME}/switch")
    assert there.status_code == 200, there.text
    assert (await client.get("/users/migrations")).json()["user-m-1-2"]["username"] == "user2"
    back = (await client.post(f"/read-models/{NAME}/switch")).json()
    assert back["live"]["table"] == row["live"]["table"]
    assert (await client.get("/users/migrations")).json()["user-m-1-2"]["username"] == "wrong2"


async def ready(client: httpx2.AsyncClient, name: str) -> dict[str, Any]:
    """The read model once it is rebuilt."""
    async with asyncio.timeout(BOUND_S):
        while True:
            row: dict[str, Any] = (await client.get(f"/read-models/{name}")).json()
            if (row["beside"] or {}).get("state") == "ready":
                return row
            await asyncio.sleep(0.02)


async def test_a_switch_with_a_key_is_done_once(client: httpx2.AsyncClient) -> None:
    await client.post("/read-models/admin-migrations/rebuild", json={"fresh": True})
    await ready(client, "admin-migrations")
    key = {"Idempotency-Key": "once"}
    answers = [await client.post("/read-models/admin-migrations/switch", headers=key) for _ in range(2)]
    assert answers[0].json() == answers[1].json()


async def test_what_is_not_there_and_what_is_wrong(client: httpx2.AsyncClient) -> None:
    for path in ("/read-models/nobody", "/read-models/nobody/differences"):
        assert_problem(await client.get(path), 404, "not-found")
    for path in ("/read-models/nobody/rebuild", "/read-models/nobody/switch"):
        assert_problem(await client.post(path), 404, "not-found")
    assert_problem(await client.post(f"/read-models/{NAME}/rebuild", json={"surplus": 1}), 422, "invalid")
    assert_problem(await client.get(f"/read-models/{NAME}/differences", params={"cursor": "x"}), 422)


async def test_a_rebuild_that_cannot_start_is_told(client: httpx2.AsyncClient, store: EventStore) -> None:
    async with store.storage.lease("rebuild/event-statistics"):
        assert_problem(await client.post("/read-models/event-statistics/switch"), 409)
