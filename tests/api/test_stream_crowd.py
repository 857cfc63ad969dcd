"""A crowd at the stream: all are dropped again and again, one hardly reads, and nobody misses anything."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import psutil
import pytest

from eventsourcing import EventStore, UserMigratedEvent
from tests.api.conftest import Start, free_port
from tests.api.test_processes import ready

pytestmark = pytest.mark.asyncio(loop_scope="session")

FORMS = [
    pytest.param(20, 5, 300, id="short"),
    pytest.param(200, 20, 3000, id="long", marks=[pytest.mark.chaos, pytest.mark.timeout(900)]),
]


@dataclass
class Client:
    """Reads the stream, leaves in the middle of it so many times, and resumes at the last whole frame."""

    port: int
    last: int
    drops: int
    chance: random.Random
    positions: list[int] = field(default_factory=list)
    announced: list[int] = field(default_factory=list)
    """How often `caught-up` came on each connection."""

    async def read(self, total: int) -> None:
        """Read until as many events have come, dropping the connection on the way."""
        while len(self.positions) < total or self.drops:
            fair = max(1, 2 * (total - len(self.positions)) // (self.drops + 1))
            goal = len(self.positions) + self.chance.randint(0, fair) if self.drops else total
            async with streaming(self.port, self.last) as reader:
                self.announced.append(0)
                await self._until(reader, min(goal, total))
            self.drops = max(0, self.drops - 1)

    async def _until(self, reader: asyncio.StreamReader, goal: int) -> None:
        name, place = "", 0
        while len(self.positions) < goal:
            line = await reader.readline()
            assert line, "the service ended the stream"
            if line.startswith(b"id: "):
                place = int(line[4:])
            elif line.startswith(b"event: "):
                name = line[7:].decode().strip()
            elif line == b"\n" and name:
                self.last = place
                if name == "user.migrated":
                    self.positions.append(place)
                self.announced[-1] += name == "caught-up"
                name = ""


@asynccontextmanager
async def streaming(
    port: int, after: int, *, buffer: int | None = None
) -> AsyncIterator[asyncio.StreamReader]:
    """The body of a stream, unframed; the connection is cut at the end."""
    made = socket.socket()
    if buffer is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    made.setblocking(False)
    await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
    limit = 2**16 if buffer is None else buffer
    reader, writer = await asyncio.open_connection(sock=made, limit=limit)
    request = f"GET /events/stream HTTP/1.0\r\nHost: localhost\r\nLast-Event-ID: {after}\r\n\r\n"
    writer.write(request.encode())
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head, head
        yield reader
    finally:
        writer.transport.abort()


async def dawdle(port: int, after: int) -> None:
    """Take a byte a second."""
    async with streaming(port, after, buffer=4096) as reader:
        while await reader.read(1):  # noqa: ASYNC110 - nothing is waited for
            await asyncio.sleep(1)


async def append(stored: EventStore, name: str, total: int) -> None:
    """Append events in batches of every size, with pauses."""
    chance, number = random.Random(1), 0
    while number < total:
        size = min(chance.choice([1, 1, 3, 20]), total - number)
        await stored.append_events(
            [
                UserMigratedEvent(
                    user_id=f"{name}-{number + each}", username="u" * 200, source_data={}, target_data={}
                )
                for each in range(size)
            ]
        )
        number += size
        await asyncio.sleep(chance.random() / 50)


@pytest.mark.parametrize(("clients", "drops", "total"), FORMS)
async def test_nobody_misses_or_repeats_anything(
    start: Start, service_database: str, stored: EventStore, unique: str, clients: int, drops: int, total: int
) -> None:
    port = free_port()
    settings = {"ESM_REPLAY_SERVICE_PORT": str(port), "ESM_CONCURRENT_REQUESTS": "0"}
    process = start("tests.api.inline_replay_service", DATABASE_URL=service_database, **settings)
    await ready(f"http://127.0.0.1:{port}", process)
    begin = await stored.horizon()
    crowd = [Client(port, begin, drops, random.Random(seed)) for seed in range(clients)]
    before = psutil.Process(process.pid).memory_info().rss
    slow = asyncio.create_task(dawdle(port, begin))
    writing = asyncio.create_task(append(stored, unique, total))
    reading = asyncio.gather(*(client.read(total) for client in crowd))
    await asyncio.gather(writing, reading)
    assert not slow.done()
    grown = psutil.Process(process.pid).memory_info().rss - before
    expected = [event.position async for event in stored.get_all_events(after_position=begin)]
    assert len(expected) == total
    missed = sum(len(set(expected) - set(client.positions)) for client in crowd)
    repeated = sum(len(client.positions) - len(set(client.positions)) for client in crowd)
    assert (missed, repeated) == (0, 0)
    assert all(client.positions == expected for client in crowd), "in the order of the store"
    assert all(count <= 1 for client in crowd for count in client.announced)
    assert all(len(client.announced) >= drops for client in crowd)
    took = await ended(process, port, begin, crowd=min(clients, 50))
    slow.cancel()
    await asyncio.gather(slow, return_exceptions=True)
    print(  # noqa: T201 - the figures of the long form
        f"\n{clients} clients, {drops} drops each, {total} events: missed {missed}, repeated {repeated}, "
        f"memory grew by {grown / 2**20:.0f} MiB, ended {took:.2f} s after SIGTERM"
    )


async def ended(process: subprocess.Popen[str], port: int, begin: int, *, crowd: int) -> float:
    """Tell the service to stop while streams are open, the slow one among them; how long it took."""

    async def read_on(opened: asyncio.Event) -> None:
        async with streaming(port, begin) as reader:
            opened.set()
            while await reader.read(4096):
                pass

    opened = [asyncio.Event() for _ in range(crowd)]
    readers = [asyncio.create_task(read_on(event)) for event in opened]
    await asyncio.gather(*(event.wait() for event in opened))
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 10) == 0
    took = time.monotonic() - began
    await asyncio.gather(*readers, return_exceptions=True)
    return took
