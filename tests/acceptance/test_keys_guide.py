"""The guide to keys and scopes: its commands run as they stand, and what it promises of streams holds."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from api.access import Scope
from api.gate import REVOKED_WITHIN_S
from api.keys import create_key, revoke_key
from eventsourcing import EventStore, UserMigratedEvent
from eventsourcing.storage.postgres import PostgresStorage
from tests.api.conftest import ROOT, Start, free_port, start
from tests.api.service_process import running

__all__ = ["start"]

GUIDE = ROOT / "docs" / "guides" / "keys-and-scopes.md"


@pytest.mark.timeout(240)
def test_the_commands_of_the_guide_run_as_they_stand(new_database: Callable[[], str]) -> None:
    url = new_database()
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE.read_text("utf-8"), re.S)
    assert len(blocks) == 3
    with running(url, ESM_AUTHENTICATION="on") as service:
        script = "\n".join(["set -euo pipefail", *blocks]).replace(":8006", f":{service.port}")
        environment = {**os.environ, "DATABASE_URL": url, "PATH": f"{_bin()}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert '"aggregate_id":"migration-guide"' in done.stdout
        assert "is refused everywhere within 10 seconds" in done.stdout
        assert "revoked" in done.stdout
        assert httpx2.get(f"{service.url}/events").status_code == 401


@pytest.mark.timeout(180)
async def test_a_stream_ends_within_the_promised_time_after_its_key_was_revoked(
    new_database: Callable[[], str], start: Start
) -> None:
    url, port = new_database(), free_port()
    async with EventStore(storage=PostgresStorage(url, pool_size=2)) as store:
        key, text = await create_key(store.storage, "watcher", [Scope.READ], lasts=None)
        start(
            "tests.api.inline_replay_service",
            DATABASE_URL=url,
            ESM_REPLAY_SERVICE_PORT=str(port),
            ESM_AUTHENTICATION="on",
        )
        caller = {"Authorization": f"Bearer {text}"}
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            await _ready(client)
            async with client.stream("GET", "/events/stream", headers=caller) as stream:
                assert stream.status_code == 200
                chunks = stream.aiter_bytes()
                assert await anext(chunks)
                await revoke_key(store.storage, key.id)
                revoked_at = time.monotonic()
                async for _ in chunks:
                    pass
            ended_after = time.monotonic() - revoked_at
            assert ended_after < REVOKED_WITHIN_S + 5, "the promise, and what a busy machine adds"
            assert (await client.get("/replay", headers=caller)).status_code == 401


@pytest.mark.timeout(240)
async def test_a_stream_whose_client_takes_nothing_ends_then_too(
    new_database: Callable[[], str], start: Start
) -> None:
    url, port = new_database(), free_port()
    async with EventStore(storage=PostgresStorage(url, pool_size=2)) as store:
        key, text = await create_key(store.storage, "sleeper", [Scope.READ, Scope.METRICS], lasts=None)
        _, metrics = await create_key(store.storage, "prometheus", [Scope.METRICS], lasts=None)
        filler = {"username": "x" * 600_000, "source_data": {}, "target_data": {}}
        for number in range(40):
            await store.append_event(UserMigratedEvent(user_id=f"user-{number}", **filler))
        settings = {"ESM_REPLAY_SERVICE_PORT": str(port), "ESM_AUTHENTICATION": "on"}
        start("tests.api.inline_replay_service", DATABASE_URL=url, **settings)
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            await _ready(client)
            made = socket.socket()
            made.setsockopt(
                socket.SOL_SOCKET, socket.SO_RCVBUF, 4096
            )  # or the kernel takes it for the client
            made.setblocking(False)
            await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
            reader, writer = await asyncio.open_connection(sock=made, limit=4096)
            asked = f"GET /events/stream HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {text}\r\n\r\n"
            writer.write(asked.encode())
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            assert await _open_streams(client, metrics) == 1
            await revoke_key(store.storage, key.id)
            revoked_at = time.monotonic()
            while await _open_streams(client, metrics):
                assert time.monotonic() - revoked_at < REVOKED_WITHIN_S + 10, "and what a busy machine adds"
                await asyncio.sleep(0.5)
            writer.transport.abort()


async def _open_streams(client: httpx2.AsyncClient, key: str) -> int:
    told = (await client.get("/metrics", headers={"Authorization": f"Bearer {key}"})).text
    (count,) = re.findall(r"^es_sse_clients(?:{.*})? (\d+)", told, re.M)
    return int(count)


async def _ready(client: httpx2.AsyncClient) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if (await client.get("/readyz")).status_code == 200:
                return
        except httpx2.HTTPError:
            time.sleep(0.1)  # noqa: ASYNC251 - nothing else runs here
    raise AssertionError("the service was not ready within a minute")


def _bin() -> Path:
    return Path(sys.executable).parent
