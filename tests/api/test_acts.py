"""What cannot be recorded does not happen, and what is refused for its rate leaves nothing behind."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import asyncpg
import httpx2
import pytest_asyncio
from sqlalchemy.engine import make_url

from api.access import Scope
from eventsourcing import EventQuery, EventStore, Settings
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.testing import a_migration
from tests.api.callers import bearer, both, declared_scopes, guarded, key_for, operations
from tests.api.conftest import InlineLauncher, a_body, assert_problem

NO_AUDIT = """
CREATE FUNCTION no_audit() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'planted' USING ERRCODE = 'disk_full'; END $$;
CREATE TRIGGER no_audit BEFORE INSERT ON states
FOR EACH ROW WHEN (NEW.table_name = 'audit') EXECUTE FUNCTION no_audit()
"""
STATES = """
SELECT table_name, key, value::text FROM states
WHERE table_name NOT IN ('audit', 'idempotency-keys', 'api-keys') ORDER BY 1, 2
"""


class System(NamedTuple):
    """Both services over a store of their own, each asked by a caller who may do everything."""

    clients: dict[str, httpx2.AsyncClient]
    launcher: InlineLauncher
    store: EventStore
    database: asyncpg.Connection


@pytest_asyncio.fixture
async def system(store_url: str) -> AsyncIterator[System]:
    launcher = InlineLauncher(store_url)
    plain = make_url(store_url).set(drivername="postgresql").render_as_string(hide_password=False)
    database = await asyncpg.connect(plain)
    async with EventStore(storage=PostgresStorage(store_url, pool_size=2)) as store:
        await store.append_events(a_migration("migration-123"))
        settings = guarded(Settings(database_url=store_url), rate_limit=0)
        async with both(settings, launcher, launcher) as clients:
            key = bearer((await key_for(store, *Scope))[1])
            for client in clients.values():
                client.headers.update(key)
            yield System(clients, launcher, store, database)
    await database.execute("DROP FUNCTION IF EXISTS no_audit CASCADE")
    await database.close()


async def acts(system: System) -> list[tuple[str, httpx2.Response]]:
    """Ask for every act of both services, with the example of its document."""
    answers = []
    for client in system.clients.values():
        document = (await client.get("/openapi.json")).json()
        for method, path, operation in operations(document):
            if method == "GET" or declared_scopes(operation) == {Scope.APPEND}:
                continue
            place = re.sub(r"{\w+}", "user-migrations" if "read-models" in path else "migration-123", path)
            response = await client.request(method, place, json=example(document, operation))
            answers.append((f"{method} {path}", response))
    return answers


def example(document: dict[str, Any], operation: dict[str, Any]) -> Any:
    content = operation.get("requestBody", {}).get("content", {})
    named = json.dumps(content.get("application/json", {}).get("schema", {}))
    found = re.search(r"#/components/schemas/(\w+)", named)
    return None if found is None else document["components"]["schemas"][found[1]].get("examples", [{}])[0]


async def test_no_act_happens_whose_entry_cannot_be_written(system: System) -> None:
    await system.database.execute(NO_AUDIT)
    before = await system.database.fetch(STATES)
    answers = await acts(system)
    assert len(answers) > 12
    for name, response in answers:
        assert response.status_code == 503, name
        assert_problem(response, 503, "unavailable")
        assert response.headers["retry-after"], name
    assert await system.database.fetch(STATES) == before
    assert not system.launcher.runs
    await system.database.execute("DROP FUNCTION no_audit CASCADE")
    done = {name: response.status_code for name, response in await acts(system)}
    assert done.pop("POST /migrations") == 503, "the launcher of this test has no such job"
    assert 503 not in done.values(), "nothing else was in their way"
    assert done["POST /replay"] == 202
    assert done["POST /snapshot"] == 201
    assert await system.database.fetch(STATES) != before


async def test_what_comes_too_often_does_nothing(store_url: str, system: System) -> None:
    settings = guarded(Settings(database_url=store_url), rate_limit=0.01)  # two at once, then none for long
    key = bearer((await key_for(system.store, *Scope))[1])
    statuses: dict[str, list[int]] = {}
    async with both(settings, system.launcher, system.launcher) as clients:
        for number in range(8):
            body = a_body(f"hasty-{number}")
            stored = await clients["event-service"].post("/events", json=body, headers=key)
            replay = await clients["replay-service"].post("/replay", json={"replay_type": "all"}, headers=key)
            for name, response in (("events", stored), ("replays", replay)):
                statuses.setdefault(name, []).append(response.status_code)
                if response.status_code == 429:
                    assert_problem(response, 429, "rate-limited")
    assert {*statuses["events"]} == {201, 429}
    assert {*statuses["replays"]} == {202, 429}
    kept = [event async for event in system.store.read(EventQuery(event_types=("migration.started",)))]
    hasty = [event for event in kept if event.aggregate_id.startswith("hasty-")]
    assert len(hasty) == statuses["events"].count(201)
    rows = (await system.clients["replay-service"].get("/replay")).json()["replays"]
    assert len(rows) == statuses["replays"].count(202)
    acts = (await system.clients["event-service"].get("/audit?action=create_replay&limit=1000")).json()[
        "audit"
    ]
    assert [entry for entry in acts if entry["outcome"] == "202" and entry["why"] is not None]
    assert not [entry for entry in acts if entry["outcome"] == "429" and entry["why"] is not None]
