"""Whatever is sent: a problem, never a failure of the service, and never what was sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from api import event_service, replay_service
from api.problems import KINDS
from eventsourcing import Settings, UnavailableError
from tests.api.conftest import InlineLauncher, a_body, assert_problem, serving

pytestmark = pytest.mark.asyncio(loop_scope="session")

JSON = {"Content-Type": "application/json"}

RUBBISH: dict[str, tuple[bytes, int]] = {
    "empty": (b"", 422),
    "half": (b'{"event_type": ', 400),
    "text": (b"canary-7531", 400),
    "deep": (b"[" * 100_000 + b"]" * 100_000, 400),
    "deep object": (b'{"a":' * 5000 + b"1" + b"}" * 5000, 400),
    "NaN": (b'{"data": NaN}', 400),
    "infinity": (b'{"data": -Infinity}', 400),
    "lone surrogate": (b'{"event_type": "\\ud800"}', 400),
    "not UTF-8": (b'{"event_type": "\xff\xfe"}', 400),
    "huge integer": (b'{"event_type": ' + b"9" * 5000 + b"}", 400),
    "null": (b"null", 422),
    "number": (b"17", 422),
    "string": (b'"canary-7531"', 422),
    "list": (b"[[]]", 422),
    "list of null": (b"[null, null]", 422),
    "NUL": (b'{"event_type": "\\u0000"}', 422),
}

POSTS = {"events": ["/events", "/events/batch"], "replays": ["/replay", "/snapshot", "/validate-sequence"]}


@pytest.fixture
def client(request: pytest.FixtureRequest) -> httpx2.AsyncClient:
    """The client of the service named by the parameter."""
    made: httpx2.AsyncClient = request.getfixturevalue(request.param)
    return made


@pytest.mark.parametrize("client", ["events", "replays"], indirect=True)
@pytest.mark.parametrize("name", RUBBISH)
async def test_rubbish_is_refused(
    client: httpx2.AsyncClient, request: pytest.FixtureRequest, name: str
) -> None:
    body, status = RUBBISH[name]
    service = request.node.callspec.params["client"]
    for path in POSTS[service]:
        response = await client.post(path, content=body, headers=JSON)
        assert_problem(response, status, "malformed-json" if status == 400 else "invalid")
        assert "canary" not in response.text


@pytest.mark.parametrize(
    "value",
    [1e308 * 10, 2**64, -(2**63) - 1, 10**400, "\x00", {"a": {"b": "\x00"}}, {"\x00": 1}, [[["\x00"]]]],
)
async def test_values_that_no_store_holds_are_named(
    events: httpx2.AsyncClient, unique: str, value: object
) -> None:
    data = {"source_config": {}, "target_config": {}, "extra": "VALUE"}
    body = json.dumps(a_body(unique, data=data)).replace(
        '"VALUE"', json.dumps(value).replace("Infinity", "1e999")
    )
    if value == 10**400:
        body = body.replace(json.dumps(value), "1" + "0" * 400)
    problem = assert_problem(await events.post("/events", content=body, headers=JSON), 422, "invalid")
    assert problem["errors"][0]["field"].startswith("data")


async def test_the_media_type_must_be_json(events: httpx2.AsyncClient, unique: str) -> None:
    body = json.dumps(a_body(unique)).encode()
    for headers in (
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": ";;;"},
        {**JSON, "Content-Encoding": "gzip"},
    ):
        assert_problem(await events.post("/events", content=body, headers=headers), 415)
    charset = {"Content-Type": "application/json; charset=utf-8"}
    assert (await events.post("/events", content=body, headers=charset)).status_code == 201


async def test_large_bodies_are_refused_whatever_the_length_says(events: httpx2.AsyncClient) -> None:
    async def chunks() -> Any:
        for _ in range(20):
            yield b" " * 1024 * 512

    for path, limit in (("/events", 1 << 20), ("/events/batch", 8 << 20)):
        exact = await events.post(path, content=b" " * limit, headers=JSON)
        assert_problem(exact, 400)
        assert_problem(await events.post(path, content=b" " * (limit + 1), headers=JSON), 413, "too-large")
        assert_problem(await events.post(path, content=chunks(), headers=JSON), 413, "too-large")
        lying = {**JSON, "Content-Length": "10"}
        assert_problem(await events.post(path, content=b" " * (limit + 1), headers=lying), 413)
    announced = {**JSON, "Content-Length": "9" * 30}
    assert_problem(await events.post("/events", content=b"{}", headers=announced), 413)


@pytest.mark.parametrize("client", ["events", "replays"], indirect=True)
async def test_unknown_paths_and_methods(client: httpx2.AsyncClient) -> None:
    for path in ("/", "/nothing", "/events/", "/migrations//stats", "/replay/%00", "/%FF%FE"):
        assert (await client.get(path)).status_code in (404, 422)
        assert (await client.get(path)).headers["content-type"] == "application/problem+json"
    response = await client.patch("/health")
    assert_problem(response, 405, "method-not-allowed")
    assert "GET" in response.headers["allow"]
    assert_problem(await client.get("/health", headers={"Accept": "image/png"}), 406, "not-acceptable")
    assert (await client.get("/health", headers={"Accept": "text/html, */*;q=0.1"})).status_code == 200


@pytest.mark.parametrize("client", ["events", "replays"], indirect=True)
async def test_every_type_says_what_it_means(client: httpx2.AsyncClient) -> None:
    for slug, kind in KINDS.items():
        answer = (await client.get(f"/problems/{slug}")).json()
        assert (answer["status"], answer["title"]) == (kind.status, kind.title)
    assert_problem(await client.get("/problems/nothing"), 404)


@pytest.mark.parametrize("client", ["events", "replays"], indirect=True)
async def test_documented_errors_are_problems_and_operations_keep_their_names(
    client: httpx2.AsyncClient, request: pytest.FixtureRequest
) -> None:
    document = (await client.get("/openapi.json")).json()
    assert {"type", "title", "status", "detail"} <= document["components"]["schemas"]["Problem"][
        "properties"
    ].keys()
    operations = {}
    for path, item in document["paths"].items():
        for operation in item.values():
            operations[operation["operationId"]] = path
            for status, response in operation["responses"].items():
                if status >= "400" and path not in ("/health", "/readyz"):
                    assert list(response["content"]) == ["application/problem+json"], (path, status)
    names = {
        "events": {
            "publish_event", "publish_batch", "publish_lines", "query_events", "event_stats", "get_event",
            "audit_log", "list_read_models", "get_read_model", "list_differences", "rebuild_read_model",
            "switch_read_model", "list_dead_letters", "redrive_dead_letters", "discard_dead_letters",
            "list_consumers",
            "all_migration_stats", "migration_stats", "user_migrations", "admin_migrations",
            "create_migration", "list_migrations", "get_migration", "resume_migration", "cancel_migration",
            "verify_migration", "rollback_migration", "list_quarantine", "retry_quarantine", "get_report",
            "get_report_page", "health", "livez", "readyz", "metrics",
        },
        "replays": {
            "create_replay", "list_replays", "get_replay", "delete_replay", "resume_replay",
            "create_snapshot", "get_snapshot", "validate_sequence", "stream_events",
            "health", "livez", "readyz", "metrics",
        },
    }  # fmt: skip
    assert operations.keys() == names[request.node.callspec.params["client"]]


@pytest.fixture
def untouched(settings: Settings, new_database: Callable[[], str]) -> Settings:
    """Settings over a database where nothing waits for a worker."""
    return settings.model_copy(update={"database_url": new_database()})


@pytest.mark.parametrize(
    ("module", "service"), [(event_service, "event-service"), (replay_service, "replay-service")]
)
async def test_health_when_all_is_well(untouched: Settings, module: Any, service: str) -> None:
    async with serving(module.create_app(untouched)) as client:
        for path in ("/health", "/readyz", "/livez"):
            response = await client.get(path)
            assert response.status_code == 200
            report = response.json()
            assert (report["status"], report["service"]) == ("healthy", service)
            assert report["timestamp"].endswith("Z")
        assert (await client.get("/health")).json()["checks"]["store"]["status"] == "up"


async def test_an_open_door_shows_in_health(settings: Settings) -> None:
    open_door = settings.model_copy(update={"allow_insecure_bind": True})
    async with serving(event_service.create_app(open_door)) as client:
        assert (await client.get("/health")).json()["checks"]["authentication"]["status"] == "off"


async def test_without_the_store_everything_says_503_and_recovers(untouched: Settings, unique: str) -> None:
    app = event_service.create_app(untouched)
    async with serving(app) as client:
        storage = app.state.system.store.storage
        pool, storage._pool = storage._pool, None
        for path in (
            "/events",
            "/events/stats",
            "/migrations/stats",
            "/migrations/x/stats",
            "/users/migrations",
        ):
            response = await client.get(path)
            assert_problem(response, 503, "unavailable")
            assert "retry-after" in response.headers
        assert_problem(await client.post("/events", json=a_body(unique)), 503, "unavailable")
        for path in ("/health", "/readyz"):
            response = await client.get(path)
            assert (response.status_code, response.json()["status"]) == (503, "unhealthy")
        assert (await client.get("/livez")).status_code == 200
        storage._pool = pool
        assert (await client.get("/health")).json()["status"] == "healthy"
        assert (await client.post("/events", json=a_body(unique))).status_code == 201


async def test_a_fault_of_ours_is_a_problem_without_its_cause(settings: Settings) -> None:
    app = event_service.create_app(settings)

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("canary-7531")

    @app.get("/away")
    async def away() -> None:
        raise UnavailableError("postgresql://user:canary-7531@db")

    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for path, status in (("/broken", 500), ("/away", 503)):
                response = await client.get(path)
                assert_problem(response, status)
                assert "canary" not in response.text


async def test_a_launcher_that_refuses_is_503(
    replays: httpx2.AsyncClient, launcher: InlineLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "refuses", True)
    for path, body in (
        ("/snapshot", {"aggregate_id": "x"}),
        ("/validate-sequence", {"aggregate_id": "x", "expected_sequence": []}),
        ("/replay", {"replay_type": "all"}),
    ):
        assert_problem(await replays.post(path, json=body), 503, "unavailable")
    newest = (await replays.get("/replay", params={"limit": 1})).json()["replays"][0]
    assert newest["status"] == "failed"
