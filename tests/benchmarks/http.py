"""`POST /events` and batches against a bare FastAPI route with one INSERT of the same rows.

Both are processes of their own under uvicorn (uvloop, httptools), on one PostgreSQL, measured in turn by the
same clients: raw sockets with keep-alive, for a Python HTTP client costs more than what it measures.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import orjson

from eventsourcing.storage.embedded import EmbeddedPostgres
from tests.benchmarks.measure import (
    Report,
    Timed,
    bench_server,
    bench_store,
    compared,
    conditions,
    percentiles,
)

CLIENTS, REQUESTS, BATCH, BATCHES = 32, 6_000, 100, 200
ROOT = Path(__file__).parents[2]
TARGET = 0.7


def a_body(number: int) -> dict[str, object]:
    """An event of about 350 bytes on a stream of its own."""
    return {
        "event_type": "user.migrated",
        "aggregate_id": f"user-{time.time_ns()}-{number}",
        "aggregate_type": "user",
        "data": {
            "username": f"user{number}",
            "source_data": {"mail": f"user{number}@example.com", "filler": "x" * 90},
            "target_data": {"mail": f"user{number}@example.com", "filler": "y" * 90},
        },
    }


def a_request(path: str, value: object) -> bytes:
    """A whole request."""
    body = orjson.dumps(value)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    return head.encode() + str(len(body)).encode() + b"\r\n\r\n" + body


async def send_all(port: int, requests: list[bytes]) -> list[float]:
    """Send requests over as many connections as there are clients; how long each took, in seconds."""
    took: list[float] = []
    queue = iter(requests)

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for request in queue:
            began = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 201 " not in head.partition(b"\r\n")[0]:
                raise RuntimeError(head.decode())
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            took.append(time.perf_counter() - began)
        writer.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return took


@contextmanager
def serving(module: str, port: int, url: str, **environment: str) -> Iterator[int]:
    """A service as a process; its id."""
    given = {**os.environ, "DATABASE_URL": url, "ESM_EVENT_SERVICE_PORT": str(port), **environment}
    process = subprocess.Popen([sys.executable, "-m", module], env=given, cwd=ROOT)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        process.wait(20)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def posting(port: int, path: str, count: int, size: int, took: list[float]) -> Timed:
    """Post `count` requests of `size` events (0: one that is no list); events a second."""

    async def post() -> float:
        bodies = [
            a_body(n) if not size else [a_body(n * size + m) for m in range(size)] for n in range(count)
        ]
        requests = [a_request(path, body) for body in bodies]
        began = time.perf_counter()
        took.extend(await send_all(port, requests))
        return count * max(size, 1) / (time.perf_counter() - began)

    return post


async def measure(report: Report) -> None:
    """Compare both ways in."""
    with bench_server() as server, ExitStack() as stack:
        async with bench_store(server, "http", pool_size=2) as (_, storage):
            report.note(await conditions(storage))
        ours, bare = free_port(), free_port()
        stack.enter_context(_ours(server, ours))
        stack.enter_context(serving("tests.benchmarks.bare_route", bare, server.url("http")))
        for name, path, count, size in (
            ("POST /events", "/events", REQUESTS, 0),
            (f"POST /events/batch of {BATCH}", "/events/batch", BATCHES, BATCH),
        ):
            mine: list[float] = []
            theirs: list[float] = []
            await posting(ours, path, max(count // 10, 10), size, [])()
            await posting(bare, path, max(count // 10, 10), size, [])()
            row = await compared(
                f"{name}, {CLIENTS} clients, events",
                posting(ours, path, count, size, mine),
                posting(bare, path, count, size, theirs),
                target=TARGET,
            )
            report.add(row)
            report.note(f"ours: {percentiles(mine)}; bare: {percentiles(theirs)}")


@contextmanager
def _ours(server: EmbeddedPostgres, port: int) -> Iterator[int]:
    with serving(
        "api.event_service", port, server.url("http"), ESM_RATE_LIMIT="0", LOG_LEVEL="WARNING"
    ) as pid:
        yield pid
