"""A page in a developer's browser reads and does nothing in services that ask nobody who they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from api import event_service
from eventsourcing import ConfigurationError, Settings
from tests.api.callers import guarded
from tests.api.conftest import a_body, assert_problem, serving
from tests.api.service_process import raw, running

pytestmark = pytest.mark.asyncio(loop_scope="session")

REBOUND = (
    "evil.example",
    "evil.example:8006",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "x:y@z",
)
OURS = (
    "localhost",
    "localhost:8006",
    "LOCALHOST",
    "127.0.0.1:8006",
    "[::1]:8006",
    "10.1.2.3",
    "esm.localhost",
)


@pytest.mark.parametrize("host", REBOUND)
async def test_a_name_that_was_pointed_here_is_refused(
    events: httpx2.AsyncClient, replays: httpx2.AsyncClient, host: str
) -> None:
    for client, path in ((events, "/events"), (events, "/docs"), (replays, "/events/stream?after=now")):
        answer = await client.get(path, headers={"Host": host})
        assert_problem(answer, 403, "foreign-host")
    assert_problem(
        await events.post("/events", json=a_body("x"), headers={"Host": host}), 403, "foreign-host"
    )


@pytest.mark.parametrize("host", OURS)
async def test_every_address_and_localhost_are_ours(events: httpx2.AsyncClient, host: str) -> None:
    assert (await events.get("/events/stats", headers={"Host": host})).status_code == 200
    own = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    assert (await events.get("/events/stats", headers=own)).status_code == 200


FOREIGN = (
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:3000"},
    {"Origin": "http://localhost.evil.example"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
)


@pytest.mark.parametrize("sent", FOREIGN)
async def test_a_foreign_page_reads_nothing_and_does_nothing(
    events: httpx2.AsyncClient, replays: httpx2.AsyncClient, sent: dict[str, str], unique: str
) -> None:
    form = {**sent, "Content-Type": "text/plain"}
    assert_problem(await events.get("/events", headers=sent), 403, "foreign-page")
    assert_problem(await replays.get("/events/stream", headers=sent), 403, "foreign-page")
    for path in (f"/migrations/{unique}/cancel", "/read-models/users/rebuild", "/read-models/users/switch"):
        assert_problem(await events.post(path, headers=form), 403, "foreign-page")  # a form without fields
    assert_problem(await events.post("/events", json=a_body(unique), headers=sent), 403, "foreign-page")
    assert (await events.get("/events", params={"aggregate_id": unique})).json() == []


async def test_a_link_may_be_followed_and_a_form_may_not(events: httpx2.AsyncClient) -> None:
    followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    page = await events.get("/docs", headers=followed)
    assert page.status_code == 200
    assert page.headers["x-content-type-options"] == "nosniff"
    assert_problem(await events.post("/read-models/users/switch", headers=followed), 403, "foreign-page")


async def test_names_that_the_settings_list_are_ours(settings: Settings) -> None:
    named = settings.model_copy(update={"allowed_hosts": "event-service, Panel.example.org"})
    async with serving(event_service.create_app(named)) as client:
        for host in ("event-service:8006", "panel.example.org", "localhost"):
            assert (await client.get("/livez", headers={"Host": host})).status_code == 200
        assert_problem(await client.get("/livez", headers={"Host": "other"}), 403, "foreign-host")


@pytest.mark.parametrize(("allowed", "status"), [("", 200), ("esm.example.org", 403)])
async def test_with_authentication_names_are_held_to_a_list_that_is_given(
    settings: Settings, allowed: str, status: int
) -> None:
    async with serving(event_service.create_app(guarded(settings, allowed_hosts=allowed))) as client:
        sent = {"Host": "proxy.internal", "Origin": "https://panel.example.org"}
        assert (await client.get("/livez", headers=sent)).status_code == status


@pytest.mark.parametrize(
    "given", [{"allowed_hosts": "*"}, {"trusted_proxies": "*"}, {"trusted_proxies": "proxy"}]
)
async def test_a_setting_that_allows_everything_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"ESM_{next(iter(given)).upper()}"):
        Settings.load(**given)


@pytest.mark.timeout(120)
async def test_what_no_client_library_would_send(new_database: Callable[[], str]) -> None:
    with running(new_database()) as service:
        for request, status in (
            (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 403),
            (b"GET /livez HTTP/1.1\r\nHost: evil.example\r\nHost: localhost\r\n\r\n", 403),
            (b"GET http://localhost/livez HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
            (b"GET /livez HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: localhost\r\n\r\n", 403),
            (b"GET /livez HTTP/1.0\r\n\r\n", 200),
            (b"GET http://localhost/livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
            (
                b"GET /livez HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
                200,
            ),
        ):
            answer = await raw(service.port, request)
            assert answer.startswith(b"HTTP/1.1 %d " % status), (request, answer)
