"""POST /events/bulk: lines in, a result a line out; nothing twice, whatever breaks off."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx2
import orjson
import pytest

import api.bulk
from eventsourcing import EventQuery, EventStore
from tests.api.conftest import a_body, assert_problem

pytestmark = pytest.mark.asyncio(loop_scope="session")

MEDIA = {"Content-Type": "application/x-ndjson"}


def lines_of(bodies: list[dict[str, Any]]) -> bytes:
    return b"".join(orjson.dumps(body) + b"\n" for body in bodies)


async def post(
    client: httpx2.AsyncClient, content: bytes | AsyncIterator[bytes], path: str = "", **headers: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The results of the lines, and the last line."""
    response = await client.post(f"/events/bulk{path}", content=content, headers={**MEDIA, **headers})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("application/x-ndjson")
    *results, end = [orjson.loads(line) for line in response.text.splitlines()]
    return results, end


async def count(stored: EventStore, aggregate_id: str) -> int:
    return len([event async for event in stored.read(EventQuery(aggregate_id=aggregate_id))])


async def test_lines_are_stored_in_their_order_with_a_result_each(
    events: httpx2.AsyncClient, stored: EventStore, unique: str
) -> None:
    results, end = await post(events, lines_of([a_body(unique)] * 1203))
    assert [result["line"] for result in results] == list(range(1, 1204))
    assert [result["event_version"] for result in results] == list(range(1, 1204))
    assert end == {"status": "done", "resume_from": 1204, "stored": 1203, "known": 0, "refused": 0}
    assert await count(stored, unique) == 1203


async def test_a_line_that_cannot_be_stored_stops_no_other(
    events: httpx2.AsyncClient, stored: EventStore, unique: str
) -> None:
    taken = str(uuid4())
    await events.post("/events", json=a_body(f"{unique}-other", event_id=taken))
    bad: list[bytes] = [
        b"{",
        b"[]",
        b"",
        b'"text"',
        orjson.dumps(a_body(unique, event_type="no.such.type")),
        orjson.dumps(a_body(unique, data={"source_config": 1})),
        orjson.dumps(a_body(unique, expected_version=7)),
        orjson.dumps(a_body(unique, event_id=taken)),
        b"[" * 100 + b"]" * 100,
        b"\xff\xfe",
    ]
    content = b"".join(line + b"\n" + orjson.dumps(a_body(unique)) + b"\n" for line in bad)
    results, end = await post(events, content)
    refused = {result["line"]: result["problem"] for result in results if result["status"] == "refused"}
    assert sorted(refused) == [1, 3, 7, 9, 11, 13, 15, 17, 19]
    assert refused[13]["current_version"] == 6
    assert refused[15]["type"] == "/problems/event-id-reused"
    assert (end["stored"], end["refused"]) == (10, 9)
    assert await count(stored, unique) == 10


async def test_the_same_lines_under_a_key_are_stored_once(
    events: httpx2.AsyncClient, stored: EventStore, unique: str
) -> None:
    content, key = lines_of([a_body(unique)] * 700), uuid4().hex
    first, _ = await post(events, content, **{"Idempotency-Key": key})
    half = b"\n".join(content.split(b"\n")[300:])
    resumed, end = await post(events, half, "?resume_from=301", **{"Idempotency-Key": key})
    again, _ = await post(events, content, **{"Idempotency-Key": key})
    assert {result["status"] for result in first} == {"stored"}
    assert {result["status"] for result in resumed + again} == {"known"}
    assert [result["event_id"] for result in resumed] == [result["event_id"] for result in first[300:]]
    assert end["resume_from"] == 701
    assert await count(stored, unique) == 700


async def test_what_ends_a_call_early_says_where_to_go_on(
    events: httpx2.AsyncClient, stored: EventStore, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.bulk, "MAX_LINES", 1000)
    content, key = lines_of([a_body(unique)] * 1400), uuid4().hex
    results, end = await post(events, content, **{"Idempotency-Key": key})
    assert (len(results), end["status"], end["resume_from"]) == (1000, "stopped", 1001)
    assert end["problem"]["type"] == "/problems/too-large"
    rest = b"\n".join(content.split(b"\n")[1000:])
    _, end = await post(events, rest, "?resume_from=1001", **{"Idempotency-Key": key})
    assert (end["status"], end["stored"]) == ("done", 400)
    assert await count(stored, unique) == 1400


async def test_a_line_has_a_limit_and_the_body_need_none(events: httpx2.AsyncClient, unique: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield lines_of([a_body(unique)])
        for _ in range(40):
            yield b"x" * 65536

    results, end = await post(events, endless())
    assert (results, end["status"], end["resume_from"]) == ([], "stopped", 1)
    assert end["problem"]["status"] == 413


async def test_other_media_and_numbers_are_refused(events: httpx2.AsyncClient) -> None:
    assert_problem(await events.post("/events/bulk", json={}), 415)
    refused = await events.post("/events/bulk?resume_from=0", content=b"", headers=MEDIA)
    assert_problem(refused, 422)
    assert (await post(events, b""))[1]["status"] == "done"
