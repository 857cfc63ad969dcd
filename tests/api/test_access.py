"""Who may do what: every endpoint by every scope, keys and their revocation, limits, and what is refused."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from fastapi import APIRouter

from api.access import OPEN, Scope, needs
from api.gate import REVOKED_WITHIN_S
from api.keys import list_keys, revoke_key
from api.limits import MAX_BUCKETS, RateLimit
from api.requests import JsonRoute
from eventsourcing import ConfigurationError, EventStore, NotFoundError, Settings
from tests.api.callers import bearer, both, declared_scopes, guarded, key_for, operations
from tests.api.conftest import InlineLauncher, a_body, assert_problem

pytestmark = pytest.mark.asyncio(loop_scope="session")

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "keys-and-scopes.md"

Services = dict[str, httpx2.AsyncClient]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def services(settings: Settings, launcher: InlineLauncher) -> AsyncIterator[Services]:
    async with both(guarded(settings, rate_limit=0), launcher) as clients:
        yield clients


async def test_every_endpoint_opens_to_its_scope_and_to_no_other(
    services: Services, stored: EventStore
) -> None:
    keys = {scope: bearer((await key_for(stored, scope))[1]) for scope in Scope}
    lines = []
    for service, client in services.items():
        document = (await client.get("/openapi.json")).json()
        for method, path, operation in operations(document):
            allowed = declared_scopes(operation)
            open_to = {scope for scope, key in keys.items() if await opens(client, method, path, key)}
            assert open_to == allowed, (service, method, path)
            assert await opens(client, method, path, {}) == (operation["security"] == [])
            marks = " | ".join("✓" if scope in open_to else "" for scope in Scope)
            lines.append(f"| {service.partition('-')[0]} | `{method} {path}` | {marks} |")
    print("\n".join(lines))  # noqa: T201 - the table, with `pytest -s`
    published = re.findall(r"^\| (?:event|replay) \| .*$", GUIDE.read_text("utf-8"), flags=re.MULTILINE)
    assert published == lines, f"the table of {GUIDE.name} is another:\n" + "\n".join(lines)


async def opens(client: httpx2.AsyncClient, method: str, path: str, headers: dict[str, str]) -> bool:
    """Whether a caller gets past the gate, with a request that changes nothing whoever sends it."""
    response = await client.request(method, re.sub(r"{\w+}", "x", path) + "?after=none", headers=headers)
    if response.status_code in (401, 403):
        assert_problem(response, response.status_code)
    return response.status_code not in (401, 403)


async def test_a_route_that_declares_no_scope_cannot_be_made() -> None:
    router = APIRouter(route_class=JsonRoute)
    with pytest.raises(TypeError, match="/forgotten declares no scope"):
        router.get("/forgotten")(lambda: None)
    with pytest.raises(ValueError, match="no-such-scope"):
        router.get("/wrong", openapi_extra={"security": [{"api_key": ["no-such-scope"]}]})(lambda: None)
    router.get("/open", openapi_extra=OPEN)(lambda: None)
    router.get("/guarded", openapi_extra=needs(Scope.READ))(lambda: None)


async def test_who_does_not_say_who_they_are_is_refused_before_anything_is_read(
    services: Services, stored: EventStore
) -> None:
    key_id, text = await key_for(stored, Scope.READ)
    _, expired = await key_for(stored, Scope.READ, lasts=timedelta(microseconds=1))
    secret = text.removeprefix(f"esm_{key_id}_")
    for given in (
        {},
        bearer(""),
        bearer("esm_"),
        bearer(text[:-1] + ("A" if text[-1] != "A" else "B")),
        bearer(f"esm_{'0' * 16}_{secret}"),
        bearer(expired),
        bearer("a.b.c"),
        {"Authorization": f"Basic {text}"},
        {"Authorization": text},
    ):
        response = await services["event-service"].get("/events", headers=given)
        assert_problem(response, 401, "unauthenticated")
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert secret not in response.text
    enormous = await services["event-service"].post("/events", content=b"x" * 9_000_000)
    assert_problem(enormous, 401)


async def test_a_revoked_key_is_refused_within_the_promised_time(
    services: Services, stored: EventStore
) -> None:
    key_id, text = await key_for(stored, Scope.READ)

    async def ask() -> httpx2.Response:
        return await services["event-service"].get("/events/stats", headers=bearer(text))

    assert (await ask()).status_code == 200
    await revoke_key(stored.storage, key_id)
    revoked_at = time.monotonic()
    while (await ask()).status_code == 200:
        assert time.monotonic() - revoked_at < REVOKED_WITHIN_S
        await asyncio.sleep(0.2)
    assert_problem(await ask(), 401, "unauthenticated")


async def test_two_keys_of_a_name_live_at_once_and_no_third(stored: EventStore) -> None:
    first, _ = await key_for(stored, Scope.READ, name="rotated")
    second, _ = await key_for(stored, Scope.READ, name="rotated")
    with pytest.raises(ConfigurationError, match="2 live keys"):
        await key_for(stored, Scope.READ, name="rotated")
    await revoke_key(stored.storage, first)
    assert (await revoke_key(stored.storage, first)).state() == "revoked"
    third, _ = await key_for(stored, Scope.READ, name="rotated")
    states = {key.id: key.state() for key in await list_keys(stored.storage) if key.name == "rotated"}
    assert states == {first: "revoked", second: "live", third: "live"}
    with pytest.raises(NotFoundError):
        await revoke_key(stored.storage, "none")


async def test_of_many_that_ask_for_a_key_at_once_two_get_one(stored: EventStore) -> None:
    asked = [key_for(stored, Scope.READ, name="at-once") for _ in range(8)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(answer, ConfigurationError) for answer in answers) == 6


async def test_no_secret_is_kept(stored: EventStore) -> None:
    key_id, text = await key_for(stored, Scope.READ)
    secret = text.removeprefix(f"esm_{key_id}_")
    (kept,) = [key for key in await list_keys(stored.storage) if key.id == key_id]
    assert secret not in repr(kept)
    assert kept.digest not in text


async def test_a_caller_that_calls_too_often_waits(
    settings: Settings, launcher: InlineLauncher, stored: EventStore
) -> None:
    async with both(guarded(settings, rate_limit=5), launcher) as clients:
        hasty, other = [bearer((await key_for(stored, Scope.READ))[1]) for _ in range(2)]
        client = clients["event-service"]
        answers = [await client.get("/events/stats", headers=hasty) for _ in range(20)]
        refused = [answer for answer in answers if answer.status_code != 200]
        assert refused
        for answer in refused:
            assert_problem(answer, 429, "rate-limited")
            assert int(answer.headers["retry-after"]) >= 1
        assert (await client.get("/events/stats", headers=other)).status_code == 200
        assert (await client.get("/livez")).status_code == 200


async def test_strangers_are_held_back_and_stand_in_nobodys_way(
    settings: Settings, launcher: InlineLauncher, stored: EventStore
) -> None:
    async with both(guarded(settings, rate_limit=5), launcher) as clients:
        client, known = clients["event-service"], bearer((await key_for(stored, Scope.READ))[1])
        guesses = [bearer(f"esm_{number:016x}_{'A' * 43}") for number in range(30)]
        statuses = [(await client.get("/events", headers=guess)).status_code for guess in guesses]
        assert set(statuses) == {401, 429}
        assert (await client.get("/events/stats", headers=known)).status_code == 200


async def test_limits_forget_and_stay_small() -> None:
    now = [0.0]
    limit = RateLimit(10, 20, clock=lambda: now[0])
    assert [limit.wait_s("a") for _ in range(20)] == [0.0] * 20
    assert limit.wait_s("a") == pytest.approx(0.1)
    now[0] = 0.1
    assert limit.wait_s("a") == 0.0
    for number in range(MAX_BUCKETS * 2):
        limit.wait_s(f"caller {number}")
    assert len(limit._buckets) <= MAX_BUCKETS
    assert [RateLimit(0, 1).wait_s("a") for _ in range(5)] == [0.0] * 5


async def test_while_authentication_is_off_everybody_may_do_everything(
    events: httpx2.AsyncClient, unique: str
) -> None:
    assert (await events.post("/events", json=a_body(unique))).status_code == 201
    assert (await events.get("/audit")).status_code == 200


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"bind_host": "0.0.0.0"}, "ESM_AUTHENTICATION=on"),
        ({"oidc_issuer": "https://id.example.com", "oidc_audience": "esm"}, "ESM_AUTHENTICATION=on"),
        ({"authentication": "on", "oidc_issuer": "https://id.example.com"}, "ESM_OIDC_AUDIENCE"),
        ({"authentication": "on", "oidc_audience": "esm"}, "ESM_OIDC_ISSUER"),
        (
            {"authentication": "on", "oidc_issuer": "http://id.example.com", "oidc_audience": "esm"},
            "must be an https URL",
        ),
    ],
)
async def test_settings_that_leave_a_door_open_are_refused(given: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        Settings.load(**given)
    assert Settings.load(bind_host="0.0.0.0", authentication="on").authentication == "on"
