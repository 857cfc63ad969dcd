"""What one caller may take, and a stranger: no more than their share, whoever they say that they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from fastapi import Request

import api.gate
from api import event_service
from api.access import Caller, Scope
from api.gate import Gate
from api.keys import create_key
from api.limits import Seats
from api.problems import ProblemError
from eventsourcing import EventStore, Settings
from eventsourcing.storage.base import StateTransaction
from eventsourcing.storage.memory import InMemoryStorage
from eventsourcing.storage.postgres import PostgresStorage
from tests.api.callers import bearer, both, caller, guarded, key_for
from tests.api.conftest import InlineLauncher, a_body, assert_problem, serving
from tests.api.service_process import raw, running

pytestmark = pytest.mark.asyncio(loop_scope="session")


def asked(*values: bytes) -> Request:
    """A request with these Authorization headers."""
    headers = [(b"authorization", value) for value in values]
    return Request({"type": "http", "headers": headers, "client": ("10.0.0.9", 1)})


class CountingStorage(InMemoryStorage):
    """Counts how many look at it at a time, and takes its time."""

    at_once = most = 0

    @asynccontextmanager
    async def transaction(self, *, snapshot: bool = False) -> AsyncIterator[StateTransaction]:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await asyncio.sleep(0.002)
            async with super().transaction(snapshot=snapshot) as transaction:
                yield transaction
        finally:
            self.at_once -= 1


async def test_one_authorization_header_counts_and_two_are_none(settings: Settings) -> None:
    storage = InMemoryStorage()
    _, text = await create_key(storage, "one", [Scope.READ], lasts=None)
    gate = Gate(guarded(settings), storage)
    good = f"Bearer {text}".encode()
    for taken in (good, good.replace(b"Bearer", b"bEARER"), good.replace(b" ", b"   ") + b" "):
        assert (await gate.admit(asked(taken), Scope.READ)).name.startswith("key:one/")
    for refused in (
        (good, good),
        (good, b"Bearer x"),
        (b"Bearer x", good),
        (good + b", " + good,),
        (good + b"\xa0",),
        (b"\xc2\xa0" + good,),
        (b"Bearer\t" + text.encode(),),
        (good.replace(b"esm_", b"ESM_"),),
        (good.replace(b"esm_", "\uff45sm_".encode()),),
        (good.replace(b"esm_", b"esm_\x00"),),
        (b"Bearer",),
        (b"Token " + text.encode(),),
    ):
        with pytest.raises(ProblemError) as error:
            await gate.admit(asked(*refused), Scope.READ)
        assert error.value.status_code == 401, refused


async def test_guesses_take_two_connections_and_make_nobody_forgotten(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.gate, "_MAX_KNOWN", 50)
    storage = CountingStorage()
    _, text = await create_key(storage, "known", [Scope.READ], lasts=None)
    gate = Gate(guarded(settings, rate_limit=0), storage)
    await gate.admit(asked(f"Bearer {text}".encode()), Scope.READ)
    storage.most = 0
    guesses = [asked(f"Bearer esm_{number:016x}_{'A' * 43}".encode()) for number in range(120)]
    answers = await asyncio.gather(
        *(gate.admit(guess, Scope.READ) for guess in guesses), return_exceptions=True
    )
    assert {getattr(answer, "status_code", None) for answer in answers} == {401}
    assert storage.most <= 2
    storage.most = 0
    await gate.admit(asked(f"Bearer {text}".encode()), Scope.READ)
    assert storage.most == 0, "the key is known still, and is not looked up again"


async def test_who_lacks_the_scope_is_counted_too(
    settings: Settings, launcher: InlineLauncher, stored: EventStore
) -> None:
    async with both(guarded(settings, rate_limit=5), launcher) as clients:
        client = clients["event-service"]
        reader = await caller(client, stored, Scope.READ)
        statuses = [(await client.get("/audit", headers=reader)).status_code for _ in range(20)]
        assert set(statuses) == {403, 429}


async def test_seats_are_counted_by_name_and_given_back() -> None:
    seats = Seats(2)
    assert [seats.take(name) for name in "aaab"] == [True, True, False, True]
    seats.give_back("a")
    assert seats.take("a")
    for name in "aab":
        seats.give_back(name)
    assert seats._taken == {}
    assert all(Seats(0).take("a") for _ in range(1000))


async def test_a_caller_who_waits_everywhere_leaves_room_for_others(
    settings: Settings, launcher: InlineLauncher, stored: EventStore
) -> None:
    changes = {"rate_limit": 0, "concurrent_requests": 5}
    async with both(guarded(settings, **changes), launcher) as clients:
        client = clients["event-service"]
        greedy, other = [await caller(client, stored, Scope.READ) for _ in range(2)]
        far = f"/events/stats?min_position={2**62}"  # waits for five seconds
        held = [asyncio.create_task(client.get(far, headers=greedy)) for _ in range(12)]
        done, waiting = await asyncio.wait(held, timeout=2)
        assert len(waiting) == 5
        for task in done:
            refused = assert_problem(task.result(), 429, "rate-limited")
            assert refused["detail"]
        assert (await client.get("/events/stats", headers=other)).status_code == 200
        assert {task.result().status_code for task in (await asyncio.wait(waiting))[0]} == {503}
        assert (await client.get("/events/stats", headers=greedy)).status_code == 200


@pytest.mark.timeout(120)
async def test_open_streams_and_unread_answers_hold_their_seats(
    new_database: Callable[[], str], settings: Settings
) -> None:
    del settings
    with running(
        new_database(), module="tests.api.inline_replay_service", ESM_CONCURRENT_REQUESTS="3"
    ) as service:
        writers = []
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
            writer.write(b"GET /events/stream?after=now HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            writers.append(writer)
        request = b"GET /replay HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 192.0.2.%d\r\n\r\n"
        for number in range(3):  # what a caller says of its address makes it nobody else
            assert (await raw(service.port, request % number)).startswith(b"HTTP/1.1 429 ")
        writers.pop().transport.abort()
        async with asyncio.timeout(30):
            while not (await raw(service.port, request % 9)).startswith(b"HTTP/1.1 200 "):  # noqa: ASYNC110 - what frees the seat is in another process
                await asyncio.sleep(0.1)
        for writer in writers:
            writer.transport.abort()


@pytest.mark.parametrize(("trusted", "seen"), [("", "127.0.0.1"), ("127.0.0.1,10.0.0.0/8", "192.0.2.7")])
@pytest.mark.timeout(120)
async def test_the_audit_names_the_address_that_a_trusted_proxy_saw(
    new_database: Callable[[], str], trusted: str, seen: str
) -> None:
    with running(new_database(), ESM_TRUSTED_PROXIES=trusted, FORWARDED_ALLOW_IPS="*") as service:
        path = f"{service.url}/read-models/nowhere/switch"
        sent = {"X-Forwarded-For": "203.0.113.1, 192.0.2.7, 10.1.1.1"}
        assert (await asyncio.to_thread(httpx2.post, path, headers=sent)).status_code == 404
        audit = (await asyncio.to_thread(httpx2.get, f"{service.url}/audit?action=switch_read_model")).json()
        (entry,) = audit["audit"]
        assert entry["what"]["client"] == seen


async def test_strangers_are_told_states_and_no_names(
    settings: Settings, launcher: InlineLauncher, stored: EventStore
) -> None:
    async with both(guarded(settings, rate_limit=0), launcher) as clients:
        for client in clients.values():
            trusted = await caller(client, stored, Scope.METRICS)
            for path in ("/readyz", "/health"):
                told = (await client.get(path)).json()["checks"]
                assert told
                assert all(check.keys() == {"status"} for check in told.values()), told
                assert "position" in (await client.get(path, headers=trusted)).json()["checks"]["store"]


async def test_probes_at_the_same_time_share_one_look(
    events: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = 0

    async def slowly(_system: Any) -> dict[str, Any]:
        nonlocal looked
        looked += 1
        await asyncio.sleep(0.2)
        return {"store": {"status": "up", "position": 1}}

    monkeypatch.setattr("api.health._followers", slowly)
    answers = await asyncio.gather(*(events.get("/readyz") for _ in range(40)))
    assert {answer.status_code for answer in answers} == {200}
    assert looked == 1


async def test_an_answer_is_not_told_again_to_who_may_not_see_it_any_more(
    settings: Settings,
    launcher: InlineLauncher,
    stored: EventStore,
    unique: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with both(guarded(settings, rate_limit=0), launcher) as clients:
        events, replays = clients["event-service"], clients["replay-service"]
        _, text = await key_for(stored, Scope.APPEND, Scope.REPLAY, Scope.READ_PERSONAL)
        key = bearer(text) | {"Idempotency-Key": unique}
        record = {"username": "Ada", "source_data": {}, "target_data": {}}
        body = a_body(f"user-{unique}", event_type="user.migrated", aggregate_type="user", data=record)
        assert (await events.post("/events", json=body, headers=bearer(text))).status_code == 201
        taken = await replays.post("/snapshot", json={"aggregate_id": f"user-{unique}"}, headers=key)
        assert "Ada" in taken.text
        lost = frozenset({Scope.APPEND, Scope.REPLAY})  # as the issuer of tokens may decide for one subject
        monkeypatch.setattr("api.keys.ApiKey.caller", _with_scopes(lost))
        again = await replays.post("/snapshot", json={"aggregate_id": f"user-{unique}"}, headers=key)
        told = assert_problem(again, 403, "forbidden")
        assert told["needed_scope"] == "events:read_personal"
        assert "Ada" not in again.text


def _with_scopes(scopes: frozenset[Scope]) -> Callable[[Any], Any]:
    return lambda key: Caller(f"key:{key.name}/{key.id}", scopes)


async def test_slow_reads_leave_connections_to_appends_and_probes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, unique: str
) -> None:
    async def slowly(store: EventStore, _filters: Any, *, masked: bool) -> tuple[list[bytes], None]:
        assert isinstance(store.storage, PostgresStorage)
        await store.storage.pool.fetchval("SELECT pg_sleep(4)")
        return [b'"masked"'] if masked else [], None

    monkeypatch.setattr(event_service, "page_of_events", slowly)
    small = settings.model_copy(update={"pool_size": 2})
    async with serving(event_service.create_app(small)) as client:
        assert (await client.get("/readyz")).status_code == 200
        reads = [asyncio.create_task(client.get("/events")) for _ in range(10)]
        await asyncio.sleep(0.5)
        assert (await client.post("/events", json=a_body(unique))).status_code == 201
        assert (await client.get("/readyz")).status_code == 200
        statuses = [read.status_code for read in await asyncio.gather(*reads)]
        assert set(statuses) == {200, 503}, "who waits too long for a turn is told to come again"
