"""`kill -9` of the writing process and of PostgreSQL itself: whatever was acknowledged is still there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventsourcing import EventStore
from eventsourcing.storage.embedded import EmbeddedPostgres, EmbeddedStorage

WRITER = """
import asyncio, sys
from eventsourcing import EventStore, EventStoreConfig, UserMigratedEvent

async def main():
    async with EventStore(EventStoreConfig(database_url=sys.argv[1])) as store:
        number = 0
        while True:
            batch = [
                UserMigratedEvent(user_id=f"user-{number % 7}", username=name, source_data={}, target_data={})
                for name in ("a", "b", "c")
            ]
            for event in await store.append_events(batch):
                print(event.event_id, event.position, flush=True)
            number += 1

asyncio.run(main())
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data directory that the server's own user can reach."""
    with tempfile.TemporaryDirectory(prefix="esm-crash-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
        server = EmbeddedPostgres(path)
        server.start()
        server.stop()


def write_until_killed(url: str, data_dir: Path | None) -> list[str]:
    """What a writer printed as acknowledged until it, or first the server of a data directory, was killed."""
    command = [sys.executable, "-c", WRITER, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(60)]
        if data_dir is not None:
            pid_file = data_dir / "postgres" / "postmaster.pid"
            os.kill(int(pid_file.read_text().splitlines()[0]), signal.SIGKILL)
            time.sleep(0.3)  # its children notice and go
        writer.kill()
        lines += writer.stdout.readlines()
    return [line for line in lines if line.endswith("\n")]


async def stored(data_dir: Path) -> dict[str, int]:
    """The ids and positions in the store, opened anew."""
    async with EventStore(storage=EmbeddedStorage(data_dir)) as store:
        return {str(event.event_id): event.position async for event in store.get_all_events()}


async def test_acknowledged_events_survive_the_death_of_writer_and_server(data_dir: Path) -> None:
    acknowledged: dict[str, int] = {}
    for victim in ("writer", "server"):
        server = EmbeddedPostgres(data_dir)
        server.start()
        server.ensure_database("event_store")
        lines = write_until_killed(server.url("event_store"), data_dir if victim == "server" else None)
        acknowledged |= {event_id: int(place) for event_id, place in map(str.split, lines)}

    found = await stored(data_dir)

    assert {event_id: found.get(event_id) for event_id in acknowledged} == acknowledged
    assert len(found) % 3 == 0, "a batch is stored whole or not at all"
