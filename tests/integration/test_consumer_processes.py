"""A consumer group over several processes: one is stopped like a zombie, one is killed, one comes new."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from eventsourcing import EventStore, UserMigratedEvent
from eventsourcing.consumer import checkpoint_key
from eventsourcing.storage.base import CHECKPOINTS
from eventsourcing.storage.postgres import PostgresStorage
from tests.waiting import until

AGGREGATES, ROUNDS = 40, 60

CONSUMER = """
import asyncio, os, sys
from eventsourcing import EventBus, EventBusConfig, EventStore
from eventsourcing.storage import postgres_leases
from eventsourcing.storage.postgres import PostgresStorage

postgres_leases.BEAT_S, postgres_leases.SILENCE_S = 0.3, 1.5
ledger = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

async def take(event):
    await asyncio.sleep(0.001)
    os.write(ledger, f"{os.getpid()} {event.aggregate_id} {event.event_version}\\n".encode())

async def main():
    async with EventStore(storage=PostgresStorage(sys.argv[1])) as store:
        bus = EventBus(EventBusConfig(retry_delay=0.01), store=store)
        await bus.subscribe(["user.migrated"], take, consumer_group="shared")
        async with bus:
            await asyncio.Event().wait()

asyncio.run(main())
"""


class Consumers:
    """The processes of the group, and what they wrote."""

    def __init__(self, url: str, ledger: Path) -> None:
        self._url, self._ledger = url, ledger
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        command = [sys.executable, "-c", CONSUMER, self._url, str(self._ledger)]
        self.processes.append(subprocess.Popen(command))

    def lines(self) -> list[tuple[int, str, int]]:
        """Who handled which version of which aggregate, in order."""
        text = self._ledger.read_text() if self._ledger.exists() else ""
        words = map(str.split, text.splitlines())
        return [(int(pid), aggregate_id, int(version)) for pid, aggregate_id, version in words]

    async def busy(self, *, beside: frozenset[int] = frozenset()) -> int:
        """Wait until a process not among these handles something new; its pid."""
        known = len(self.lines())
        async with asyncio.timeout(60):
            while True:
                fresh = [pid for pid, _, _ in self.lines()[known:] if pid not in beside]
                if fresh:
                    return fresh[-1]
                await asyncio.sleep(0.05)

    def stop(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


async def test_nothing_is_skipped_or_overtaken_while_processes_stop_die_and_come(
    store_url: str, tmp_path: Path
) -> None:
    consumers = Consumers(store_url, tmp_path / "ledger")
    async with EventStore(storage=PostgresStorage(store_url)) as store:
        writing = asyncio.create_task(write(store))
        try:
            consumers.start()
            consumers.start()
            zombie = await consumers.busy()
            os.kill(zombie, signal.SIGSTOP)
            leader = await consumers.busy(beside=frozenset({zombie}))
            consumers.start()
            os.kill(leader, signal.SIGKILL)
            os.kill(zombie, signal.SIGCONT)
            await writing
            await level(store)
        finally:
            writing.cancel()
            consumers.stop()

    handled: dict[str, list[int]] = defaultdict(list)
    for _, aggregate_id, version in consumers.lines():
        handled[aggregate_id].append(version)
    assert len(handled) == AGGREGATES
    for versions in handled.values():
        assert list(dict.fromkeys(versions)) == list(range(1, ROUNDS + 1))


async def write(store: EventStore) -> None:
    for round_ in range(ROUNDS):
        await store.append_events(
            [
                UserMigratedEvent(user_id=f"user-{n}", username=str(round_), source_data={}, target_data={})
                for n in range(AGGREGATES)
            ]
        )
        await asyncio.sleep(0.15)


async def level(store: EventStore) -> None:
    """Wait until the checkpoint of the group says that everything is handled."""
    head = await store.horizon()

    async def reached() -> bool:
        async with store.storage.transaction() as transaction:
            checkpoint = await transaction.get(CHECKPOINTS, checkpoint_key("shared"))
        return checkpoint is not None and (checkpoint["position"], checkpoint.get("held")) == (head, {})

    await until(reached)
