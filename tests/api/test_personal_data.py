"""Personal data comes out nowhere to a caller without the scope, and everywhere to one who has it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import pytest_asyncio
from fastapi import Request

from api.access import CALLER, Caller, Scope
from api.feed import LiveFeed
from api.gate import Gate
from api.sse import EventStream, event_frame, masked_frame
from eventsourcing import BaseEvent, EventQuery, EventStore, RecordedEvent, Settings
from eventsourcing.events import registered_events
from eventsourcing.personal import MASK, masked_fields, masked_state
from eventsourcing.readmodels import USER_MIGRATIONS_MODEL
from eventsourcing.rebuilds import rebuild
from eventsourcing.replays import ReplayJournal, ReplayRequest
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.testing import a_migration as an_old_migration
from resources.migration_journal import MigrationJournal
from tests.api.callers import bearer, both, guarded, key_for
from tests.api.conftest import InlineLauncher, a_body
from tests.api.service_process import running

pytestmark = pytest.mark.asyncio(loop_scope="session")

CANARY = "Ada-Canary-Lovelace"

Services = dict[str, httpx2.AsyncClient]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def services(settings: Settings, launcher: InlineLauncher) -> AsyncIterator[Services]:
    async with both(guarded(settings, rate_limit=0), launcher) as clients:
        yield clients


async def a_life(client: httpx2.AsyncClient, key: dict[str, str], unique: str) -> dict[str, Any]:
    """A migration that moved a user, set a record aside and failed, all naming the canary."""
    correlation = str(uuid4())

    async def publish(kind: str, aggregate: str, of: str, data: dict[str, Any]) -> str:
        body = {"event_type": kind, "aggregate_id": aggregate, "aggregate_type": of, "data": data}
        body |= {"correlation_id": correlation, "metadata": {"author": CANARY}}
        response = await client.post("/events", json=body, headers=key)
        assert response.status_code == 201, response.text
        return str(response.json()["event_id"])

    configs = a_body(unique)["data"]
    await publish("migration.started", unique, "migration", configs)
    record = {"username": CANARY, "source_data": {"mail": CANARY}, "target_data": {"mail": CANARY}}
    event_id = await publish("user.migrated", f"user-{unique}", "user", {**record, "migration_id": unique})
    await publish("admin.migrated", f"admin-{unique}", "admin", record)
    aside: dict[str, Any] = {"entity": "users", "source_key": CANARY, "stage": "validate", "rule": "mail"}
    aside |= {"column": "mail", "message": f"{CANARY} is no address", "also": [CANARY]}
    await publish("record.quarantined", f"record-{unique}", "record", aside)
    failed = {"error_message": f"duplicate key ({CANARY})", "error_details": {"row": CANARY}}
    await publish("migration.failed", unique, "migration", failed)
    return {"event_id": event_id, "correlation_id": correlation}


async def test_personal_data_comes_out_only_to_who_may_see_it(
    services: Services, stored: EventStore, unique: str
) -> None:
    scopes = (Scope.APPEND, Scope.READ, Scope.REPLAY, Scope.ADMIN)
    plain = bearer((await key_for(stored, *scopes))[1])
    trusted = bearer((await key_for(stored, *scopes, Scope.READ_PERSONAL))[1])
    events, replays = services["event-service"], services["replay-service"]
    made = await a_life(events, trusted, unique)
    asked = [
        (events, "GET", f"/events?correlation_id={made['correlation_id']}", None),
        (events, "GET", f"/events/{made['event_id']}", None),
        (events, "GET", f"/migrations/{unique}/stats", None),
        (events, "GET", "/migrations/stats", None),
        (events, "GET", "/users/migrations?limit=1000", None),
        (events, "GET", "/admins/migrations?limit=1000", None),
        (events, "GET", f"/migrations/{unique}/quarantine", None),
        (replays, "POST", "/snapshot", {"aggregate_id": unique}),
        (replays, "POST", "/snapshot", {"aggregate_id": f"user-{unique}"}),
        (replays, "POST", "/snapshot", {"aggregate_id": f"record-{unique}"}),
        (replays, "GET", f"/snapshot/user-{unique}", None),
    ]
    for client, method, path, body in asked:
        seen = await client.request(method, path, json=body, headers=trusted)
        hidden = await client.request(method, path, json=body, headers=plain)
        assert seen.status_code == hidden.status_code, (path, hidden.text)
        assert seen.status_code in (200, 201), (path, seen.text)
        if "record-" not in path + str(body):  # its state is of handlers, which may keep nothing of it
            assert CANARY in seen.text, path
        assert CANARY not in hidden.text, path
        if isinstance(seen.json(), dict) and path != "/events":
            assert hidden.json().keys() == seen.json().keys(), path
    for needed in (f"/migrations/{unique}/report", f"/migrations/{unique}/report.html"):
        answer = await events.get(needed, headers={**plain, "Accept": "*/*"})
        assert answer.status_code == 403


async def test_what_a_caller_publishes_comes_back_masked(
    services: Services, stored: EventStore, unique: str
) -> None:
    key = bearer((await key_for(stored, Scope.APPEND))[1])
    body = a_body(f"user-{unique}", event_type="user.migrated", aggregate_type="user")
    body |= {"data": {"username": CANARY, "source_data": {}, "target_data": {}}, "event_id": str(uuid4())}
    for _ in range(2):
        answer = await services["event-service"].post("/events", json=body, headers=key)
        assert answer.json()["data"]["username"] == MASK
        assert CANARY not in answer.text


async def test_streams_mask_live_and_from_history(stored: EventStore, unique: str) -> None:
    feed = LiveFeed(stored, event_frame)
    query = EventQuery(aggregate_id=f"user-{unique}")
    record = {"username": CANARY, "source_data": {}, "target_data": {}}
    draft = {"event_type": "user.migrated", "aggregate_id": f"user-{unique}", "aggregate_type": "user"}
    await stored.append_event(BaseEvent(**draft, data=record))

    async def two_of(encode: Any) -> bytes:
        taken = b""
        stream = EventStream(stored, feed, query, after=0, encode=encode)
        async for chunk in stream.chunks():
            taken += chunk
            if taken.count(b"event: user.migrated") == 2:
                stream.end()
        return taken

    async with asyncio.TaskGroup() as group:
        hidden = group.create_task(two_of(masked_frame))
        seen = group.create_task(two_of(event_frame))
        await asyncio.sleep(0.3)
        await stored.append_event(BaseEvent(**draft, data=record))
    assert seen.result().count(CANARY.encode()) == 2
    assert CANARY.encode() not in hidden.result()
    assert hidden.result().count(MASK.encode()) == 6


async def test_what_nobody_declared_is_hidden(stored: EventStore, unique: str) -> None:
    draft = BaseEvent(event_type="team.thing", aggregate_id=unique, aggregate_type="thing")
    draft.data, draft.metadata = {"who": CANARY, "migration_id": "m"}, {"by": CANARY, "region": "eu"}
    event = await stored.append_event(draft)
    fields = masked_fields(event)
    assert fields["data"] == {"who": MASK, "migration_id": "m"}
    assert fields["metadata"] == {"by": MASK, "region": "eu"}
    assert isinstance(event, RecordedEvent)
    assert event.data["who"] == CANARY
    assert masked_state({"AnyFold": {"who": CANARY}}) == {"AnyFold": MASK}


async def test_every_event_of_ours_says_what_is_personal() -> None:
    ours = [cls for cls in registered_events() if cls.__module__ == "eventsourcing.catalogue"]
    assert len(ours) > 15
    for cls in ours:
        assert cls.personal is not None, cls
        assert cls.personal <= cls.payload_model.model_fields.keys(), cls


async def test_what_jobs_tell_of_people_is_masked(
    services: Services, stored: EventStore, unique: str
) -> None:
    plain = bearer((await key_for(stored, Scope.READ))[1])
    trusted = bearer((await key_for(stored, Scope.READ, Scope.READ_PERSONAL))[1])
    request = {"mapping": "m", "source": "s", "target": unique, "on_failure": "keep"}
    migrations, journal = MigrationJournal(stored.storage), ReplayJournal(stored.storage)
    await migrations.create(unique, request, status="failed")
    await migrations.update(unique, failure=CANARY, preview={"samples": [{"key": CANARY}], "entities": {}})
    replay_id = await journal.create(ReplayRequest(replay_type="all"))
    said = {"failure": CANARY, "errors": [{"error": CANARY}], "difference": {"u": {"old": CANARY}}}
    await journal.update(replay_id, status="failed", **said)
    for service, path in (
        ("event-service", f"/migrations/{unique}"),
        ("replay-service", f"/replay/{replay_id}"),
    ):
        seen = await services[service].get(path, headers=trusted)
        hidden = await services[service].get(path, headers=plain)
        assert seen.text.count(CANARY) >= 2, seen.text
        assert CANARY not in hidden.text
        assert hidden.json().keys() == seen.json().keys()


async def test_rows_that_differ_are_shown_by_key_alone(store_url: str, launcher: InlineLauncher) -> None:
    async with EventStore(storage=PostgresStorage(store_url, pool_size=2)) as store:
        await store.append_events(an_old_migration("m-1", users=2))
        await USER_MIGRATIONS_MODEL.catch_up(store.storage)
        async with store.storage.transaction() as transaction:
            await transaction.put(USER_MIGRATIONS_MODEL.table, "user-m-1-0", {"username": CANARY})
        await rebuild(store.storage, USER_MIGRATIONS_MODEL)
        plain = bearer((await key_for(store, Scope.ADMIN))[1])
        trusted = bearer((await key_for(store, Scope.ADMIN, Scope.READ_PERSONAL))[1])
        async with both(guarded(Settings(database_url=store_url)), launcher) as clients:
            path = "/read-models/user-migrations/differences"
            (seen,) = (await clients["event-service"].get(path, headers=trusted)).json()
            (hidden,) = (await clients["event-service"].get(path, headers=plain)).json()
    assert seen["old"]["username"] == CANARY
    assert hidden == {name: value for name, value in seen.items() if name not in ("old", "new")}


async def test_the_stream_of_a_service_is_masked(store_url: str) -> None:
    async with EventStore(storage=PostgresStorage(store_url, pool_size=2)) as store:
        record = {"username": CANARY, "source_data": {}, "target_data": {}}
        draft = {"event_type": "user.migrated", "aggregate_id": "user-1", "aggregate_type": "user"}
        await store.append_event(BaseEvent(**draft, data=record))
        plain = bearer((await key_for(store, Scope.READ))[1])
        trusted = bearer((await key_for(store, Scope.READ, Scope.READ_PERSONAL))[1])
    module = "tests.api.inline_replay_service"
    with running(store_url, module=module, ESM_AUTHENTICATION="on") as service:
        async with httpx2.AsyncClient(base_url=service.url, timeout=20) as client:
            for headers, expected in ((trusted, CANARY), (plain, MASK)):
                async with client.stream("GET", "/events/stream", headers=headers) as answer:
                    frames = (line async for line in answer.aiter_lines() if line.startswith("data: "))
                    event = json.loads((await anext(frames)).removeprefix("data: "))
                assert event["data"]["username"] == expected


ROUTES = [
    "/events",
    "/events/{event_id}",
    "/migrations/stats",
    "/migrations/{migration_id:path}/stats",
    "/users/migrations",
    "/admins/migrations",
    "/migrations/{migration_id}/quarantine",
    "/migrations/{migration_id}",
    "/snapshot",
    "/snapshot/{aggregate_id:path}",
    "/replay/{replay_id}",
]


@pytest.mark.parametrize("route", ROUTES)
async def test_planted_a_route_that_masks_nothing_is_caught(
    services: Services, stored: EventStore, unique: str, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    admit = Gate.admit

    async def unmasked(self: Gate, request: Request, scope: Scope) -> Caller:
        caller = await admit(self, request, scope)
        if request.scope["route"].path == route:
            caller = Caller.named(caller.name, [*caller.scopes, Scope.READ_PERSONAL])
            request.scope[CALLER] = caller
        return caller

    monkeypatch.setattr(Gate, "admit", unmasked)
    of_jobs = route in ("/migrations/{migration_id}", "/replay/{replay_id}")
    asked = (
        test_what_jobs_tell_of_people_is_masked
        if of_jobs
        else test_personal_data_comes_out_only_to_who_may_see_it
    )
    with pytest.raises(AssertionError, match=f"(?s){CANARY}"):
        await asked(services, stored, unique)
