"""The services as processes: they start whole or not at all, serve streams, and end in order."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator

import httpx2
import pytest
import pytest_asyncio

from eventsourcing import EventStore, UserMigratedEvent
from tests.api.conftest import Start, a_body, free_port

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def ready(url: str, process: subprocess.Popen[str]) -> None:
    """Return once the service at this URL is ready."""
    deadline = time.monotonic() + 30
    async with httpx2.AsyncClient() as client:
        while time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[1]
            try:
                if (await client.get(f"{url}/readyz")).status_code == 200:
                    return
            except httpx2.TransportError:
                await asyncio.sleep(0.05)
    pytest.fail("the service does not become ready")


@pytest_asyncio.fixture(loop_scope="session")
async def stream_service(start: Start, service_database: str) -> tuple[str, subprocess.Popen[str]]:
    """The URL and the process of a Replay Service."""
    port = free_port()
    process = start(
        "tests.api.inline_replay_service", DATABASE_URL=service_database, ESM_REPLAY_SERVICE_PORT=str(port)
    )
    await ready(f"http://127.0.0.1:{port}", process)
    return f"http://127.0.0.1:{port}", process


async def sse(response: httpx2.Response) -> AsyncIterator[dict[str, str]]:
    """The events of a stream as {id, event, data}."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if not line:
            if "event" in fields:
                yield fields
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


async def test_the_published_commands_of_the_event_service(start: Start, service_database: str) -> None:
    port = free_port()
    process = start("api.event_service", DATABASE_URL=service_database, ESM_EVENT_SERVICE_PORT=str(port))
    url = f"http://127.0.0.1:{port}"
    await ready(url, process)
    async with httpx2.AsyncClient(base_url=url) as client:
        assert (await client.post("/events", json=a_body("migration-123"))).status_code == 201
        listed = (await client.get("/events?aggregate_id=migration-123")).json()
        assert listed[0]["event_type"] == "migration.started"
        stats = (await client.get("/events/stats")).json()
        assert stats["events_by_type"]["migration.started"] >= 1
        assert (await client.get("/migrations/migration-123/stats")).json()["status"] == "started"
        assert (await client.get("/health")).json()["service"] == "event-service"
    process.terminate()
    assert process.wait(timeout=10) == 0


async def check_filters(url: str, stored: EventStore, unique: str) -> None:
    """The published stream: some types, history first, caught up, then live."""
    begin = await stored.horizon()
    user = UserMigratedEvent(user_id=unique, username="u", source_data={}, target_data={})
    async with httpx2.AsyncClient(base_url=url, timeout=30) as client:
        await stored.append_event(user)
        query = f"event_types=user.migrated,migration.completed&aggregate_id={unique}&after={begin}"
        async with client.stream("GET", f"/events/stream?{query}") as response:
            assert response.headers["cache-control"] == "no-store"
            frames = sse(response)
            event = await anext(frames)
            assert json.loads(event["data"])["event_id"] == str(user.event_id)
            assert (await anext(frames))["event"] == "caught-up"


async def test_a_stream_over_the_wire_resumes_without_gap_or_repeat(
    stream_service: tuple[str, subprocess.Popen[str]], stored: EventStore, unique: str
) -> None:
    """Clients drop the connection and resume at the last id while events are appended."""
    url, _ = stream_service
    total, begin = 60, await stored.horizon()

    async def write() -> None:
        for number in range(total):
            await stored.append_event(
                UserMigratedEvent(user_id=f"{unique}-{number}", username="u", source_data={}, target_data={})
            )

    async def read(every: int) -> list[int]:
        positions: list[int] = []
        last = str(begin)
        async with httpx2.AsyncClient(base_url=url, timeout=30) as client:
            while len(positions) < total:
                headers = {"Last-Event-ID": last}
                async with client.stream("GET", "/events/stream?after=now", headers=headers) as response:
                    assert response.headers["content-type"].startswith("text/event-stream")
                    async for event in sse(response):
                        last = event["id"]
                        if event["event"] != "user.migrated":
                            continue
                        positions.append(int(event["id"]))
                        if len(positions) % every == 0 or len(positions) == total:
                            break
        return positions

    writing = asyncio.create_task(write())
    readings = list(await asyncio.gather(read(7), read(13), read(60)))
    await writing
    expected = [event.position async for event in stored.get_all_events(after_position=begin)]
    assert readings == [expected] * 3
    await check_filters(url, stored, unique)


async def test_sigterm_ends_open_streams_in_order(
    stream_service: tuple[str, subprocess.Popen[str]],
) -> None:
    url, process = stream_service
    opened: asyncio.Queue[str] = asyncio.Queue()

    async def read(client: httpx2.AsyncClient) -> None:
        async with client.stream("GET", "/events/stream?after=now") as response:
            async for event in sse(response):
                opened.put_nowait(event["event"])

    async with httpx2.AsyncClient(base_url=url, timeout=30) as client:
        readers = [asyncio.create_task(read(client)) for _ in range(5)]
        for _ in readers:
            assert await opened.get() == "caught-up"
        process.terminate()
        # A stream that is cut off instead of ended raises a protocol error here.
        await asyncio.wait_for(asyncio.gather(*readers), timeout=10)
    assert await asyncio.to_thread(process.wait, 10) == 0
