"""The audit tells every access and every act, and never a secret."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from fastapi import Request

from api.access import CALLER, Caller, Scope
from api.audit_log import MAX_HELD, AuditLog
from eventsourcing import EventStore, Settings, UnavailableError
from eventsourcing.audit import audit_entries
from eventsourcing.storage.memory import InMemoryStorage
from tests.api.callers import bearer, both, guarded, key_for
from tests.api.conftest import InlineLauncher, a_body, assert_problem

pytestmark = pytest.mark.asyncio(loop_scope="session")

Services = dict[str, httpx2.AsyncClient]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def services(settings: Settings, launcher: InlineLauncher) -> AsyncIterator[Services]:
    async with both(guarded(settings, rate_limit=0), launcher) as clients:
        yield clients


async def written(client: httpx2.AsyncClient) -> None:
    """Return once the service behind a client has written what it held."""
    await client._transport.app.state.doors.audit.flush()  # type: ignore[attr-defined] # the application


async def told(client: httpx2.AsyncClient, admin: dict[str, str], by: str) -> list[dict[str, Any]]:
    """What the audit says of a caller, once what was held is written."""
    await written(client)
    response = await client.get("/audit", params={"by": by, "limit": 1000}, headers=admin)
    assert response.status_code == 200, response.text
    return list(response.json()["audit"])


async def test_accesses_and_acts_are_told_with_who_what_and_outcome(
    services: Services, stored: EventStore, unique: str
) -> None:
    key_id, text = await key_for(stored, Scope.READ, Scope.REPLAY, name=f"n-{unique}")
    admin = bearer((await key_for(stored, Scope.ADMIN))[1])
    by, caller = f"key:n-{unique}/{key_id}", bearer(text)
    events, replays = services["event-service"], services["replay-service"]
    for _ in range(3):
        await events.get(f"/events?aggregate_id={unique}", headers=caller)
    await events.get("/events/0199ab3c-5b1e-7a53-9d3e-2f1d6c1f4a10?api_key=canary-secret", headers=caller)
    assert_problem(await events.post("/events", json=a_body(unique), headers=caller), 403, "forbidden")
    assert_problem(await replays.post("/snapshot", json={"aggregate_id": unique}, headers=caller), 404)
    await replays.post("/replay", json={"replay_type": "all"}, headers=caller)
    await replays.get("/snapshot/a%00b", headers=caller)
    await written(replays)
    entries = await told(events, admin, by)
    said = {(entry["action"], entry["outcome"], entry.get("count")) for entry in entries}
    assert said == {
        ("query_events", "200", 3),
        ("get_event", "422", 1),
        ("publish_event", "403", 1),
        ("create_snapshot", "404", None),
        ("create_replay", "202", None),
        ("get_snapshot", "422", 1),
    }
    query = next(entry for entry in entries if entry["action"] == "query_events")
    assert query["what"]["path"] == f"/events?aggregate_id={unique}"
    everything = str(entries)
    assert "canary-secret" not in everything
    assert text not in everything
    assert text.removeprefix(f"esm_{key_id}_") not in everything


async def test_an_act_that_cannot_be_recorded_does_not_happen(
    settings: Settings, launcher: InlineLauncher, stored: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> str:
        raise UnavailableError("the store is away")

    async with both(guarded(settings), launcher) as clients:
        key = bearer((await key_for(stored, Scope.REPLAY))[1])
        before = len(launcher.runs)
        monkeypatch.setattr(AuditLog, "begin_act", away)
        refused = await clients["replay-service"].post("/replay", json={"replay_type": "all"}, headers=key)
        assert_problem(refused, 503, "unavailable")
        assert len(launcher.runs) == before


def a_request(path: str, name: str = "tester") -> Request:
    scope = {"type": "http", "path": path, "query_string": b"", "headers": [], "client": ("127.0.0.1", 1)}
    return Request({**scope, CALLER: Caller.named(name, ["events:read"])})


async def test_what_is_held_is_bounded_and_survives_an_outage() -> None:
    storage = InMemoryStorage()
    log = AuditLog(storage, kept=timedelta(days=1))
    for number in range(MAX_HELD + 500):
        log.note(a_request(f"/events/{number}"), "get_event", "/events/{event_id}", "200")
    assert len(log._held) <= MAX_HELD + 1

    transaction, storage.transaction = storage.transaction, _away  # type: ignore[method-assign, assignment] # an outage
    with pytest.raises(UnavailableError):
        await log.flush()
    log.note(a_request("/events/1"), "get_event", "/events/{event_id}", "200")
    storage.transaction = transaction  # type: ignore[method-assign] # over
    await log.flush()
    entries = await audit_entries(storage, limit=10_000)
    assert sum(entry["count"] for entry in entries) == MAX_HELD + 501


def _away() -> Any:
    raise UnavailableError("the store is away")


async def test_the_audit_pages_and_keeps_to_its_window(services: Services, stored: EventStore) -> None:
    admin = bearer((await key_for(stored, Scope.ADMIN))[1])
    client = services["event-service"]
    for limit in (1, 2):
        await client.get(f"/audit?limit={limit}", headers=admin)
    await written(client)
    first = await client.get("/audit?limit=1", headers=admin)
    second = await client.get(first.links["next"]["url"], headers=admin)
    assert first.json()["audit"][0]["id"] > second.json()["audit"][0]["id"]
    none = await client.get("/audit?to_timestamp=2020-01-01T00:00:00Z", headers=admin)
    assert none.json() == {"audit": []}
    assert_problem(await client.get("/audit?by=a&nonsense=1", headers=admin), 422)
