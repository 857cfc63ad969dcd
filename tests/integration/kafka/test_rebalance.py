"""Consumers come, go, and sleep through the loss of their partitions: nothing is skipped or done twice."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import pytest

from eventsourcing import EventBusConfig, EventStore
from eventsourcing.dead_letters import dead_letters
from eventsourcing.fold_handler import FoldHandler
from tests.factories import draft
from tests.integration.kafka.lab import Versions, all_applied
from tests.waiting import until

MEMBER = """
import asyncio, json, sys
from eventsourcing import EventBus, EventBusConfig, EventStore
from eventsourcing.fold_handler import FoldHandler
from eventsourcing.storage.postgres import PostgresStorage
from tests.integration.kafka.lab import Versions

async def main():
    async with EventStore(storage=PostgresStorage(sys.argv[1])) as store:
        bus = EventBus(EventBusConfig(**json.loads(sys.argv[2])), store=store)
        fold = FoldHandler(Versions(), store.storage)
        await bus.subscribe(json.loads(sys.argv[3]), fold, consumer_group="fold")
        async with bus:
            print("ready", flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(main())
"""

RATE, AGGREGATES = 200, 60
TYPES = ["order.placed", "order.paid", "order.sent", "order.returned"]


class Group:
    """Processes of one consumer group, each with a relay that stands by."""

    def __init__(self, url: str, config: EventBusConfig) -> None:
        self._arguments = [url, json.dumps(config.model_dump()), json.dumps(TYPES)]
        self.members: list[subprocess.Popen[bytes]] = []

    async def join(self) -> None:
        process = subprocess.Popen(  # noqa: ASYNC220 - starting takes a moment, waiting is done elsewhere
            [sys.executable, "-c", MEMBER, *self._arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.members.append(process)
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == b"ready\n"

    async def leave(self) -> None:
        process = self.members.pop()
        await asyncio.to_thread(process.communicate, timeout=60)  # the end of its input tells it to stop
        assert process.returncode == 0

    def end(self) -> None:
        for process in self.members:
            process.kill()
            process.communicate()


@pytest.fixture
async def group(store_url: str, kafka: EventBusConfig) -> AsyncIterator[Group]:
    """A group without members; all that join are ended."""
    made = Group(store_url, kafka.model_copy(update={"kafka_partitions": 6}))
    yield made
    made.end()


@pytest.mark.parametrize("asleep_s", [9, pytest.param(60, marks=pytest.mark.chaos)])
@pytest.mark.timeout(300)
async def test_members_come_and_go_and_one_sleeps_through_the_loss_of_its_partitions(
    store: EventStore, group: Group, asleep_s: int
) -> None:
    fold = FoldHandler(Versions(), store.storage)
    appended = 0

    async def write(for_s: float) -> None:
        nonlocal appended
        began, first = time.monotonic(), appended
        while time.monotonic() - began < for_s:
            await store.append_event(draft(f"order-{appended % AGGREGATES}", TYPES[appended // 7 % 4]))
            appended += 1
            await asyncio.sleep(max(began + (appended - first) / RATE - time.monotonic(), 0))

    await asyncio.gather(group.join(), group.join())
    await write(3)
    await asyncio.gather(group.join(), write(3))
    sleeper = group.members[0]
    sleeper.send_signal(signal.SIGSTOP)  # longer than the session of the group lasts
    await write(asleep_s)
    sleeper.send_signal(signal.SIGCONT)
    await write(2)
    await asyncio.gather(group.leave(), write(2))
    await asyncio.gather(group.leave(), write(2))
    await until(lambda: all_applied(fold, AGGREGATES, appended))
    await asyncio.sleep(1)  # what is repeated would come now

    for number in range(AGGREGATES):
        state = await fold.state_of(f"order-{number}")
        assert state == {
            "versions": [event.event_version for event in await store.get_events(f"order-{number}")]
        }
    assert await dead_letters(store.storage, "fold") == []
