"""Identical requests at the same moment: one event, one first answer; If-Match as the expected version."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import httpx2
import pytest

import api.idempotency
import api.publishing
from eventsourcing import EventQuery, EventStore
from tests.api.conftest import a_body, assert_problem

pytestmark = pytest.mark.asyncio(loop_scope="session")

AT_ONCE = 50


async def stored_events(stored: EventStore, aggregate_id: str) -> int:
    return len([event async for event in stored.read(EventQuery(aggregate_id=aggregate_id))])


async def identical_posts(
    events: httpx2.AsyncClient, stored: EventStore, unique: str, *, keys: int, path: str
) -> None:
    """Require one event for each key; and as answers only the first one, its repeats, and 409 in flight."""
    for number in range(keys):
        aggregate, headers = f"{unique}-{number}", {"Idempotency-Key": uuid4().hex}
        body = a_body(aggregate)
        content = body if path == "/events" else [body]
        answers = await asyncio.gather(
            *(events.post(path, json=content, headers=headers) for _ in range(AT_ONCE))
        )
        assert {answer.status_code for answer in answers} <= {201, 409}
        for answer in answers:
            if answer.status_code == 409:
                assert_problem(answer, 409, "request-in-flight")
                assert answer.headers["retry-after"] == "1"
        first = [answer for answer in answers if answer.status_code == 201]
        assert len({answer.text for answer in first}) == 1
        assert sum("idempotency-replayed" not in answer.headers for answer in first) == 1
        assert await stored_events(stored, aggregate) == 1
        again = await events.post(path, json=content, headers=headers)
        assert (again.status_code, again.text) == (201, first[0].text)
        assert again.headers["es-position"] == first[0].headers["es-position"]
        other = a_body(f"{aggregate}-other")
        changed = await events.post(path, json=other if path == "/events" else [other], headers=headers)
        assert_problem(changed, 422, "idempotency-key-reused")
        assert await stored_events(stored, f"{aggregate}-other") == 0


@pytest.mark.parametrize("path", ["/events", "/events/batch"])
async def test_identical_posts_under_one_key_store_one_event(
    events: httpx2.AsyncClient, stored: EventStore, unique: str, path: str
) -> None:
    await identical_posts(events, stored, unique, keys=4, path=path)


@pytest.mark.chaos
@pytest.mark.timeout(600)
async def test_identical_posts_under_a_hundred_keys_store_one_event_each(
    events: httpx2.AsyncClient, stored: EventStore, unique: str
) -> None:
    await identical_posts(events, stored, unique, keys=100, path="/events")


async def test_of_many_posts_of_one_event_id_one_is_told_201(
    events: httpx2.AsyncClient, stored: EventStore, unique: str
) -> None:
    for number in range(10):
        body = a_body(f"{unique}-{number}", event_id=str(uuid4()))
        answers = await asyncio.gather(*(events.post("/events", json=body) for _ in range(12)))
        assert sorted(answer.status_code for answer in answers) == [200] * 11 + [201]
        assert len({answer.text for answer in answers}) == 1
        assert await stored_events(stored, f"{unique}-{number}") == 1


async def test_if_match_holds_the_version_and_answers_412(events: httpx2.AsyncClient, unique: str) -> None:
    first = await events.post("/events", json=a_body(unique))
    etag = first.headers["etag"]
    second = await events.post("/events", json=a_body(unique), headers={"If-Match": etag})
    assert (second.status_code, second.headers["etag"]) == (201, '"2"')
    stale = await events.post("/events", json=a_body(unique), headers={"If-Match": etag})
    problem = assert_problem(stale, 412, "precondition-failed")
    assert (problem["current_version"], problem["expected_version"]) == (2, 1)
    for wrong in ("2", "*", 'W/"2"', '"two"'):
        answer = await events.post("/events", json=a_body(unique), headers={"If-Match": wrong})
        assert_problem(answer, 422)
    body = a_body(unique, expected_version=1)
    assert_problem(await events.post("/events", json=body, headers={"If-Match": '"2"'}), 422)


async def test_a_repeat_after_a_crash_finds_what_was_stored(
    events: httpx2.AsyncClient, stored: EventStore, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process died between the append and the answer: the key is held still, and the event is stored."""

    async def died(*_: object) -> None:
        raise RuntimeError

    headers = {"Idempotency-Key": uuid4().hex}
    with monkeypatch.context() as patched:
        patched.setattr(api.idempotency.Once, "_settle", died)
        patched.setattr(api.publishing, "HELD_S", 0.0)
        with pytest.raises(RuntimeError):
            await events.post("/events", json=a_body(unique), headers=headers)
    assert await stored_events(stored, unique) == 1
    assert (await events.post("/events", json=a_body(unique), headers=headers)).status_code == 201
    assert await stored_events(stored, unique) == 1
