"""A POST under an Idempotency-Key is done once, whatever happens between its sender and its server."""

from __future__ import annotations

import asyncio
import itertools
import socket
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
import pytest_asyncio
from fastapi.responses import Response

from api.access import Scope
from api.idempotency import KEPT, KEYS, Once
from api.problems import CONFLICT, UNAVAILABLE, ProblemError
from eventsourcing import EventStore, Settings
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.testing import a_migration
from tests.api.callers import bearer, both, guarded, key_for
from tests.api.conftest import InlineLauncher, a_body, assert_problem

shared_loop = pytest.mark.asyncio(loop_scope="session")


class Work:
    """Counts what is done, and under which tokens."""

    def __init__(self, *failures: Exception) -> None:
        self.tokens: list[UUID] = []
        self.failures = list(failures)
        self.go, self.repeated = asyncio.Event(), asyncio.Event()
        self.go.set()

    async def __call__(self, token: UUID) -> Response:
        self.tokens.append(token)
        if len(self.tokens) == 2:
            self.repeated.set()
        await self.go.wait()
        if self.failures:
            raise self.failures.pop(0)
        return Response(b'{"n":%d}' % len(self.tokens), 201, {"Location": "/here"})


def asked(store: EventStore, request: str = "body", key: str = "k") -> Once:
    return Once(store.storage, f"\x1fPOST\x1f/things\x1f{key}", request)


async def test_a_repeat_gets_the_answer_of_the_first(store: EventStore) -> None:
    work = Work()
    first = await asked(store)(work)
    again = await asked(store)(work)
    assert len(work.tokens) == 1
    assert (first.body, first.status_code, first.headers["location"]) == (b'{"n":1}', 201, "/here")
    assert (again.body, again.status_code, again.headers["location"]) == (b'{"n":1}', 201, "/here")
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert (await asked(store, key="other")(work)).body == b'{"n":2}'


async def test_another_body_under_the_key_is_refused(store: EventStore) -> None:
    work = Work()
    await asked(store)(work)
    with pytest.raises(ProblemError) as refused:
        await asked(store, "another body")(work)
    assert (refused.value.status_code, len(work.tokens)) == (422, 1)


async def test_a_refusal_frees_the_key_and_a_failure_keeps_its_token(store: EventStore) -> None:
    work = Work(ProblemError(CONFLICT, "no"), ProblemError(UNAVAILABLE, "down"), RuntimeError("broken"))
    with pytest.raises(ProblemError):
        await asked(store)(work)
    for failure in (ProblemError, RuntimeError):
        with pytest.raises(failure):
            await asked(store, "corrected")(work)
    assert (await asked(store, "corrected")(work)).status_code == 201
    refused, *failed = work.tokens
    assert len(set(failed)) == 1
    assert refused not in failed


async def test_of_many_at_once_one_is_done(store: EventStore) -> None:
    work = Work()
    work.go.clear()
    callers = [asyncio.create_task(asked(store)(work)) for _ in range(20)]
    refused = []
    for ended in itertools.islice(asyncio.as_completed(callers), 19):
        with pytest.raises(ProblemError) as problem:
            await ended
        refused.append(problem.value.status_code)
    work.go.set()
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert refused == [409] * 19
    assert len(work.tokens) == sum(isinstance(answer, Response) for answer in answers) == 1
    assert (await asked(store)(work)).body == b'{"n":1}'


async def test_a_dead_server_s_request_is_taken_over_with_its_token(store: EventStore) -> None:
    work = Work()
    work.go.clear()
    lost = asyncio.create_task(asked(store)(work, held_s=0.05))
    await asyncio.sleep(0.2)
    taking = asyncio.create_task(asked(store)(work))
    await work.repeated.wait()
    work.go.set()
    assert (await taking).body == (await lost).body == b'{"n":2}'
    assert work.tokens[0] == work.tokens[1]
    assert (await asked(store)(work)).body == b'{"n":2}'  # and not what the late one would have written


async def test_a_key_lives_for_a_day(store: EventStore) -> None:
    work = Work()
    await asked(store)(work)
    place = "\x1fPOST\x1f/things\x1fk"
    async with store.storage.transaction() as transaction:
        row: dict[str, Any] = await transaction.get(KEYS, place) or {}
        await transaction.put(KEYS, place, {**row, "since": datetime.now(UTC) - KEPT - timedelta(seconds=1)})
    assert (await asked(store, "another body")(work)).body == b'{"n":2}'
    assert work.tokens[0] != work.tokens[1]


@pytest_asyncio.fixture(loop_scope="session")
async def migration(stored: EventStore, unique: str) -> str:
    await stored.append_events(a_migration(unique))
    return unique


@shared_loop
@pytest.mark.parametrize("path", ["/replay", "/snapshot", "/validate-sequence"])
async def test_every_job_is_started_once(
    replays: httpx2.AsyncClient, launcher: InlineLauncher, migration: str, path: str
) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/replay": {"replay_type": "aggregate", "aggregate_id": migration},
        "/snapshot": {"aggregate_id": migration},
        "/validate-sequence": {"aggregate_id": migration, "expected_sequence": []},
    }
    body = bodies[path]
    headers = {"Idempotency-Key": str(uuid4())}
    runs = len(launcher.runs)
    first = await replays.post(path, json=body, headers=headers)
    again = await replays.post(path, json=dict(reversed(body.items())), headers=headers)
    assert first.is_success, first.text
    assert (first.status_code, first.content) == (again.status_code, again.content)
    assert again.headers["idempotency-replayed"] == "true"
    assert len(launcher.runs) == runs + 1
    other = await replays.post(path, json={**body, "aggregate_id": "another"}, headers=headers)
    assert_problem(other, 422, "idempotency-key-reused")
    assert_problem(await replays.post(path, json=body, headers={"Idempotency-Key": "a b"}), 422, "invalid")
    large = await replays.post(path, json={**body, "aggregate_id": 2**64}, headers=headers)
    assert assert_problem(large, 422, "invalid")["errors"][0]["field"] == "request.body.aggregate_id"


@shared_loop
async def test_a_replay_that_did_not_start_starts_under_its_id(
    replays: httpx2.AsyncClient, launcher: InlineLauncher, migration: str
) -> None:
    body = {"replay_type": "aggregate", "aggregate_id": migration}
    headers = {"Idempotency-Key": str(uuid4())}
    launcher.refuses = True
    try:
        assert_problem(await replays.post("/replay", json=body, headers=headers), 503)
    finally:
        launcher.refuses = False
    (newest,) = (await replays.get("/replay", params={"limit": 1})).json()["replays"]
    assert newest["status"] == "failed"
    started = await replays.post("/replay", json=body, headers=headers)
    assert started.json()["replay_id"] == newest["replay_id"]
    row = (await replays.get(started.headers["location"], params={"wait": 30})).json()
    assert (row["status"], row["failure"]) == ("completed", None)


async def test_each_caller_has_keys_of_their_own(store_url: str) -> None:
    async with EventStore(storage=PostgresStorage(store_url, pool_size=2)) as store:
        callers = [bearer((await key_for(store, Scope.APPEND, Scope.REPLAY))[1]) for _ in range(2)]
        same = {"Idempotency-Key": "everybody-s-first-idea"}
        async with both(guarded(Settings(database_url=store_url)), InlineLauncher(store_url)) as clients:
            ids = []
            for number, caller in enumerate(callers):
                for client, path, body in (
                    (clients["event-service"], "/events", a_body(f"of-{number}")),
                    (clients["replay-service"], "/replay", {"replay_type": "all", "batch_size": number + 1}),
                ):
                    answer = await client.post(path, json=body, headers={**caller, **same})
                    assert answer.status_code in (201, 202), answer.text
                    ids.append(answer.json().get("event_id") or answer.json()["replay_id"])
    assert len(set(ids)) == 4


async def test_a_key_held_by_a_process_that_is_gone_is_taken_over_at_once(store: EventStore) -> None:
    work = Work()
    work.go.clear()
    lost = asyncio.create_task(asked(store)(work))
    while not work.tokens:  # noqa: ASYNC110 - another task's doing
        await asyncio.sleep(0.01)
    with pytest.raises(ProblemError) as refused:
        await asked(store)(work)
    assert refused.value.status_code == 409
    await held_by(store, {"host": socket.gethostname(), "pid": 1, "created": 0.0})
    taking = asyncio.create_task(asked(store)(work))
    async with asyncio.timeout(30):
        await work.repeated.wait()
    work.go.set()
    assert (await taking).body == (await lost).body
    assert work.tokens[0] == work.tokens[1]


async def held_by(store: EventStore, process: dict[str, Any]) -> None:
    """Say of the key that another process holds it."""
    place = "\x1fPOST\x1f/things\x1fk"
    async with store.storage.transaction() as transaction:
        row = await transaction.get(KEYS, place) or {}
        await transaction.put(KEYS, place, {**row, "process": process})
