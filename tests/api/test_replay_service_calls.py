"""Every call of the Replay Service and each of its errors, against the service as it runs, jobs included."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import httpx2
import pytest
import pytest_asyncio
from rich.console import Console
from rich.table import Table

from eventsourcing.storage.embedded import EmbeddedPostgres
from eventsourcing.testing import a_migration
from tests.api.conftest import Start, append, free_port
from tests.api.test_processes import ready

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]

SEQUENCE = ["migration.started", "data.extracted"]
NEVER = "replay_20200101_000000_0"


class Call(NamedTuple):
    """A request, and what it is answered: a status, and the slug of a problem's type."""

    method: str
    path: str
    status: int
    slug: str = ""
    json: Any = None
    headers: dict[str, str] = {}  # noqa: RUF012 - read only
    content: bytes | None = None

    @property
    def name(self) -> str:
        """How the table names it."""
        return f"{self.method} {self.path}"


@pytest_asyncio.fixture(loop_scope="session")
async def service(
    start: Start, postgres_server: EmbeddedPostgres, tmp_path: Path
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a Replay Service with Dagster's jobs, over a store with one migration, `m-1`."""
    names = (f"calls_{uuid4().hex}", f"dagster_{uuid4().hex}")
    for name in names:
        postgres_server.ensure_database(name)
    await append(postgres_server.url(names[0]), a_migration("m-1"))
    port = free_port()
    process = start(
        "api.replay_service",
        DATABASE_URL=postgres_server.url(names[0]),
        ESM_DAGSTER_DATABASE_URL=postgres_server.url(names[1], driver="psycopg2"),
        ESM_DATA_DIR=str(tmp_path),
        ESM_REPLAY_SERVICE_PORT=str(port),
    )
    await ready(f"http://127.0.0.1:{port}", process)
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=90) as client:
        yield client
    process.terminate()
    assert process.wait(timeout=20) == 0


AGGREGATE = {"replay_type": "aggregate", "aggregate_id": "m-1"}
SNAPSHOT = {"aggregate_id": "m-1"}
COMPARED = {"aggregate_id": "m-1", "expected_sequence": SEQUENCE}
JSON, TEXT = {"Content-Type": "application/json"}, {"Content-Type": "text/plain"}

STARTS = [
    Call("POST", "/replay", 202, json={"replay_type": "all"}),
    Call("POST", "/replay", 202, json=AGGREGATE),
    Call("POST", "/replay", 202, json={"replay_type": "type", "event_types": ["user.migrated"]}),
    Call("POST", "/replay", 202, json={"replay_type": "correlation", "correlation_id": str(uuid4())}),
    Call("POST", "/replay", 202, json={"replay_type": "all", "dry_run": True}),
    *(
        Call("POST", "/replay", 422, "invalid", json=body)
        for body in (
            {},
            {"replay_type": "some"},
            {"replay_type": "aggregate"},
            {"replay_type": "type"},
            {"replay_type": "correlation"},
            {"replay_type": "all", "handlers": ["nobody"]},
            {"replay_type": "all", "batch_size": 0},
            {"replay_type": "all", "surplus": 1},
        )
    ),
    Call("POST", "/replay", 400, "malformed-json", content=b"{", headers=JSON),
    Call("POST", "/replay", 415, "unsupported-media-type", content=b"{}", headers=TEXT),
    Call("POST", "/replay", 413, "too-large", json={"replay_type": "all", "handlers": ["x" * 2**21]}),
    Call("POST", "/replay", 406, "not-acceptable", json=AGGREGATE, headers={"Accept": "text/html"}),
    Call("PUT", "/replay", 405, "method-not-allowed", json=AGGREGATE),
]

QUESTIONS = [
    Call("POST", "/snapshot", 201, json={**SNAPSHOT, "up_to_version": 2}),
    Call("POST", "/snapshot", 404, "not-found", json={"aggregate_id": "nobody"}),
    Call("POST", "/snapshot", 422, "invalid", json={**SNAPSHOT, "up_to_version": 0}),
    Call("GET", "/snapshot/m-1", 200),
    Call("GET", "/snapshot/nobody", 404, "not-found"),
    Call("POST", "/validate-sequence", 200, json=COMPARED),
    Call("POST", "/validate-sequence", 200, json={"aggregate_id": "m-1", "model": "migration"}),
    Call("POST", "/validate-sequence", 404, "not-found", json={**COMPARED, "aggregate_id": "nobody"}),
    Call("POST", "/validate-sequence", 422, "invalid", json={"aggregate_id": "m-1"}),
    Call("POST", "/validate-sequence", 422, "invalid", json={**COMPARED, "model": "migration"}),
    Call("POST", "/validate-sequence", 422, "invalid", json={"aggregate_id": "m-1", "model": "none"}),
    Call("GET", "/events/stream?after=x", 422, "invalid"),
    Call("GET", "/events/stream?after=999999", 409, "cursor-ahead"),
    Call("GET", "/events/stream", 406, "not-acceptable", headers={"Accept": "application/json"}),
    Call("GET", "/health", 200),
    Call("GET", "/livez", 200),
    Call("GET", "/readyz", 200),
    Call("GET", "/metrics", 200),
    Call("GET", "/nowhere", 404, "not-found"),
]


def calls(done: str, slow: str, key: str) -> list[Call]:
    """All calls, given a replay that is done, one that runs for minutes, and a key for one snapshot."""
    keyed = {"Idempotency-Key": key}
    reused = "idempotency-key-reused"
    return [
        *STARTS,
        Call("GET", "/replay", 200),
        Call("GET", "/replay?limit=1", 200),
        Call("GET", "/replay?limit=0", 422, "invalid"),
        Call("GET", "/replay?cursor=nonsense", 422, "invalid"),
        Call("GET", f"/replay/{done}", 200),
        Call("GET", f"/replay/{slow}?wait=0.2", 200),
        Call("GET", f"/replay/{done}?wait=-1", 422, "invalid"),
        Call("GET", f"/replay/{NEVER}", 404, "not-found"),
        Call("GET", "/replay/what", 404, "not-found"),
        Call("POST", f"/replay/{slow}/resume", 409, "conflict"),
        Call("DELETE", f"/replay/{slow}", 200),
        Call("DELETE", f"/replay/{slow}", 409, "conflict"),
        Call("DELETE", f"/replay/{done}", 409, "conflict"),
        Call("DELETE", f"/replay/{NEVER}", 404, "not-found"),
        Call("POST", f"/replay/{slow}/resume", 202),
        Call("POST", f"/replay/{done}/resume", 409, "conflict"),
        Call("POST", f"/replay/{NEVER}/resume", 404, "not-found"),
        Call("DELETE", f"/replay/{slow}", 200),
        Call("POST", "/snapshot", 201, json=SNAPSHOT, headers=keyed),
        Call("POST", "/snapshot", 201, json=SNAPSHOT, headers=keyed),
        Call("POST", "/snapshot", 422, reused, json={"aggregate_id": "m-2"}, headers=keyed),
        *QUESTIONS,
    ]


async def test_every_call_and_each_error(service: httpx2.AsyncClient) -> None:
    started = await service.post("/replay", json={"replay_type": "all"})
    done = (await service.get(started.headers["location"], params={"wait": 60})).json()
    assert done["status"] == "completed", done
    assert done["difference"] is not None
    patient = {"replay_type": "all", "batch_size": 1, "delay_between_batches": 30}
    slow = (await service.post("/replay", json=patient)).json()["replay_id"]
    table = Table(title="The Replay Service, call by call", title_justify="left")
    for column in ("call", "asked with", "wanted", "answered", "type"):
        table.add_column(column, overflow="fold")
    wrong = []
    for call in calls(done["replay_id"], slow, str(uuid4())):
        response = await service.request(
            call.method, call.path, json=call.json, headers=call.headers, content=call.content
        )
        problem = response.headers.get("content-type") == "application/problem+json"
        slug = response.json()["type"].removeprefix("/problems/") if problem else ""
        asked = str(call.json if call.json is not None else call.content or "")[:60]
        table.add_row(call.name, asked, str(call.status), str(response.status_code), slug)
        if (response.status_code, slug) != (call.status, call.slug):
            wrong.append((call.name, response.status_code, response.text[:300]))
    Console(width=150).print(table)
    assert not wrong
    async with service.stream("GET", "/events/stream?event_types=migration.started") as response:
        lines = [line async for line, _ in _first(response, 6)]
    assert "event: migration.started" in lines


async def _first(response: httpx2.Response, count: int) -> AsyncIterator[tuple[str, int]]:
    number = 0
    async for line in response.aiter_lines():
        number += 1
        yield line, number
        if number == count:
            return
