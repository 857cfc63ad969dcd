"""The Event Service stays up, small and clean, whatever bytes arrive: fuzzed requests and hostile ones."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import orjson
import pytest

from api.protocol import MAX_HEAD_BYTES
from eventsourcing import EventStore
from eventsourcing.storage.postgres import PostgresStorage
from tests.api.conftest import a_body
from tests.api.service_process import ServiceProcess, raw, running

MAX_GROWTH_MB = 150.0

INJECTIONS = (
    "'; DROP TABLE events; --",
    "../../etc/passwd",
    "%00",
    "${jndi:ldap://127.0.0.1/x}",
    "<script>alert(1)</script>",
    "\u202e\ufeff",
    "a\r\nSet-Cookie: x=1",
    "{{7*7}}",
    "\ud800",
)


def a_post(path: str, body: bytes, *headers: str, media: str = "application/json") -> bytes:
    """A whole POST request."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        f"Content-Type: {media}",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1") + body


def hostile() -> dict[str, bytes]:
    """Requests that mean harm, none of which may be stored."""
    deep = b'{"a":' * 5000 + b"1" + b"}" * 5000
    good = orjson.dumps(a_body("hostile"))
    cases = {
        "announces more than it may": a_post("/events", b"", "X: y").replace(b": 0", b": 99999999999"),
        "negative length": a_post("/events", good).replace(str(len(good)).encode(), b"-5"),
        "two lengths": a_post("/events", good, "Content-Length: 3"),
        "smuggling": a_post("/events", good, "Transfer-Encoding: chunked"),
        "bad chunks": b"POST /events HTTP/1.1\r\nHost: localhost\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n",
        "oversized": a_post("/events", b'{"a":"' + b"x" * 1_100_000 + b'"}'),
        "deep": a_post("/events", deep),
        "deep lists": a_post("/events/batch", b"[" * 50_000 + b"]" * 50_000),
        "wide": a_post("/events", b'{"a":[' + b"0," * 400_000 + b"0]}"),
        "huge number": a_post("/events", b'{"data":{"n":' + b"9" * 100_000 + b"}}"),
        "not a number": a_post("/events", good.replace(b"{}", b"NaN", 1) + b"NaN"),
        "UTF-16": a_post("/events", good.decode().encode("utf-16")),
        "bad UTF-8": a_post("/events", good.replace(b"hostile", b"\xff\xfe\xc0\x80")),
        "surrogate": a_post("/events", good.replace(b"hostile", b"\\ud800")),
        "NUL in an id": a_post("/events", good.replace(b"hostile", b"\\u0000")),
        "NUL in the path": b"GET /events/%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "gzip": a_post("/events", b"\x1f\x8b\x08" + b"\x00" * 100, "Content-Encoding: gzip"),
        "XML": a_post("/events", b"<!DOCTYPE x [<!ENTITY a 'b'>]><x>&a;</x>", media="application/xml"),
        "form": a_post("/events", b"a=b", media="application/x-www-form-urlencoded"),
        "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
        "long header": b"GET /events HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 3_000_000,
        "many headers": b"GET /events HTTP/1.1\r\nHost: localhost\r\n" + b"X-A: b\r\n" * 300_000,
        "long path": b"GET /events/" + b"a" * 2_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "long query": b"GET /events?cursor=" + b"a" * 50_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "odd method": b"BREW /events HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "wrong method": b"PATCH /events HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "huge idempotency key": a_post("/events", good[:-1], f"Idempotency-Key: {'k' * 5000}"),
        "a batch of too many": a_post("/events/batch", b"[" + b"{}," * 5000 + b"{}]"),
        "a line without end": a_post("/events/bulk", b"x" * 2_000_000, media="application/x-ndjson"),
    }
    for number, text in enumerate(INJECTIONS):
        body = orjson.dumps({**a_body("x"), "event_type": text.encode("utf-8", "replace").decode()})
        cases[f"injected type {number}"] = a_post("/events", body)
        query = "".join(f"%{byte:02x}" for byte in text.encode("utf-8", "surrogatepass"))
        for name in ("aggregate_id", "cursor", "order", "from_timestamp", "event_types"):
            line = f"GET /events?{name}={query} HTTP/1.1\r\nHost: localhost\r\n\r\n"
            cases[f"injected {name} {number}"] = line.encode()
        cases[f"injected path {number}"] = (
            f"GET /migrations/{query}/stats HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
    return cases


def fuzzed(seed: int) -> Iterator[bytes]:
    """Good requests with bytes changed, cut, doubled or put in, without end."""
    dice = random.Random(seed)
    seeds = [
        a_post("/events", orjson.dumps(a_body("fuzzed", expected_version=2**30))),
        a_post("/events/batch", orjson.dumps([a_body("fuzzed", expected_version=2**30)] * 2)),
        a_post(
            "/events/bulk",
            orjson.dumps(a_body("fuzzed", expected_version=2**30)),
            media="application/x-ndjson",
        ),
        b"GET /events?limit=5&order=desc&from_timestamp=2026-01-01T00:00:00Z HTTP/1.1\r\n"
        b"Host: localhost\r\n\r\n",
        b"GET /migrations/migration-1/stats HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n",
    ]
    while True:
        request = bytearray(dice.choice(seeds))
        start = request.find(b"\r\n\r\n") + 4 if dice.random() < 0.6 else 0
        for _ in range(dice.randint(1, 4)):
            place = dice.randrange(min(start, len(request) - 1), len(request)) if request else 0
            match dice.randrange(4):
                case 0:
                    request[place : place + 1] = bytes([dice.randrange(256)])
                case 1:
                    del request[place : place + dice.randrange(1, 20)]
                case 2:
                    request[place:place] = request[place : place + dice.randrange(1, 30)]
                case _:
                    request[place:place] = dice.choice(
                        (b"\x00", b'"', b"}", b"[", b"1e999", b"\\u0000", b"\xff")
                    )
        yield bytes(request)


async def attack(
    service: ServiceProcess, requests: Iterator[bytes], count: int, *, attackers: int, wait_s: float
) -> dict[str, int]:
    """Send so many of the requests, from so many at once: a request that was cut short is waited for. How
    often each status came, `none` for no answer."""
    answers: dict[str, int] = {}

    async def attacker() -> None:
        for _ in range(count // attackers):
            answer = await raw(service.port, next(requests), wait_s=wait_s)
            status = answer[9:12].decode("ascii", "replace") if answer else "none"
            answers[status] = answers.get(status, 0) + 1
            if status[0] in "45" and status != "none":
                assert b"application/problem+json" in answer.partition(b"\r\n\r\n")[0], answer[:400]

    await asyncio.gather(*(attacker() for _ in range(attackers)))
    return answers


async def slow(service: ServiceProcess, count: int) -> None:
    """Open connections that send a byte now and then, and hold them."""
    writers = []
    for number in range(count):
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", service.port)
            writer.write(b"POST /events HTTP/1.1\r\nHost: localhost\r\n" + b"X" * (number % 5))
            writers.append(writer)
    await asyncio.to_thread(service.is_up)
    for writer in writers:
        with suppress(ConnectionError):
            writer.write(b"y")
            writer.close()


async def hold_out(database_url: str, *, fuzz: int, hostile_rounds: int) -> None:
    """Require that the service answers no 5xx, stays up and small, and stores nothing of it."""
    with running(database_url) as service:
        before = service.memory_mb()
        cases = list(hostile().values())
        said = await attack(
            service, iter(cases * (hostile_rounds + 1)), len(cases) * hostile_rounds, attackers=20, wait_s=3
        )
        await slow(service, 200)
        fuzzy = await attack(service, fuzzed(7), fuzz, attackers=200, wait_s=1)
        grown = service.memory_mb() - before
        print(f"hostile {said}; fuzzed {fuzzy}; memory {before:.0f} MB + {grown:.0f} MB")  # noqa: T201 - the figures
        assert not [status for status in {*said, *fuzzy} if status.startswith("5")]
        assert grown < MAX_GROWTH_MB
        assert service.is_up()
    async with EventStore(storage=PostgresStorage(database_url, pool_size=2)) as store:
        stored = [event async for event in store.get_all_events()]
    for event in stored:  # a change of bytes may leave a good event; then it is whole
        assert event.event_type == "migration.started"
        assert {"source_config", "target_config"} <= event.data.keys()
    assert not [event for event in stored if event.aggregate_id == "hostile"]


@pytest.mark.timeout(240)
async def test_the_service_holds_out(new_database: Callable[[], str]) -> None:
    await hold_out(new_database(), fuzz=400, hostile_rounds=1)


@pytest.mark.chaos
@pytest.mark.timeout(5400)
async def test_the_service_holds_out_for_long(new_database: Callable[[], str]) -> None:
    await hold_out(new_database(), fuzz=100_000, hostile_rounds=12)


@pytest.mark.timeout(120)
async def test_heads_have_a_limit_and_a_time(new_database: Callable[[], str]) -> None:
    with running(new_database()) as service:
        flood = b"GET /events HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * (MAX_HEAD_BYTES * 3)
        answer = await raw(service.port, flood)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert b"application/problem+json" in answer
        nonsense = await raw(service.port, b"\x00\x01\x02\r\n\r\n")
        assert nonsense.startswith(b"HTTP/1.1 400 ")
        assert orjson.loads(nonsense.partition(b"\r\n\r\n")[2])["status"] == 400
        silent: Any = await raw(service.port, b"GET /events HTTP/1.1\r\n", wait_s=30)
        assert silent == b"", "the connection was closed without an answer"
