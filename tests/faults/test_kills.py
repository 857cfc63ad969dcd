"""`kill -9` of the writing process and of the postmaster, under load and with syncing on (G1, G4, G5).

Whatever was acknowledged is stored, nothing is stored twice, a batch is stored whole or not at all, and a
reader that follows throughout misses nothing. The long forms are run by `make chaos`.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from eventsourcing import CursorAheadError, EventStore, UnavailableError
from eventsourcing.storage.postgres import PostgresStorage
from tests.conformance.history import Reading, Verdict, judge
from tests.conformance.traffic import entry_of
from tests.faults.workload import BATCH, EARLY_ANSWERS, NEW_IDS, WRITERS, batch_of
from tests.servers import NEWEST, Server, new_database, server_of
from tests.waiting import BOUND_S, until

ENOUGH = 20
"""How many answers make a load, before and after a kill."""
RESUMED_WITHIN_S = 10.0
"""The bound that is promised: appends go on so soon after the server runs again."""


@dataclass
class Load:
    """A process that appends, what it said was acknowledged, and a reader that follows."""

    url: str
    fault: str = ""
    acknowledged: set[int] = field(default_factory=set)
    reading: Reading = field(default_factory=lambda: Reading("follower"))
    _process: asyncio.subprocess.Process | None = None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _answered: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        """Start, or start again, at the first call that nobody acknowledged."""
        first = max(self.acknowledged, default=0) + 1 - WRITERS
        command = [sys.executable, "-m", "tests.faults.workload", self.url, str(max(first, 0)), self.fault]
        self._process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        self._tasks.append(asyncio.create_task(self._listen(self._process)))

    async def kill(self) -> None:
        """`kill -9` the process, and take in what it said before."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()
        await self._tasks.pop()

    async def answers(self, count: int) -> None:
        """Wait for so many more acknowledgements."""
        goal = len(self.acknowledged) + count
        async with asyncio.timeout(BOUND_S):
            while len(self.acknowledged) < goal:
                self._answered.clear()
                await self._answered.wait()

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            if line.endswith(b"\n"):
                self.acknowledged.add(int(line))
                self._answered.set()

    async def follow(self) -> None:
        """Read on from where the reader is, over every outage."""
        async with EventStore(storage=PostgresStorage(self.url, pool_size=2)) as store:
            while True:
                try:
                    async for piece in store.follow(after=self.reading.reached):
                        self.reading.take(map(entry_of, piece.events), piece.position)
                except UnavailableError:
                    await asyncio.sleep(0.02)

    async def judged(self) -> tuple[Verdict, int]:
        """The verdict on everything, and how many events are stored more than once."""
        async with EventStore(storage=PostgresStorage(self.url)) as store:
            head = await store.horizon()

            async def caught_up() -> bool:
                return self.reading.reached >= head

            await until(caught_up)
            stored = [event async for event in store.get_all_events()]
        ids = {event.event_id for number in self.acknowledged for event in batch_of(number)}
        calls = Counter(event.data["call"] for event in stored)
        if self.fault == NEW_IDS:
            ids = set()
        assert len(calls) % BATCH == 0, "a batch is stored whole or not at all"
        verdict = judge(list(map(entry_of, stored)), ids, [self.reading])
        return verdict, sum(count - 1 for count in calls.values())


@asynccontextmanager
async def loaded(server: Server, *, fault: str = "") -> AsyncIterator[Load]:
    """A load on a new database, running; its process is gone at the end."""
    load = Load(new_database(server), fault)
    async with EventStore(storage=PostgresStorage(load.url)):
        pass
    follower = asyncio.create_task(load.follow())
    await load.start()
    try:
        await load.answers(ENOUGH)
        yield load
    finally:
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)
        if load._process is not None and load._process.returncode is None:
            await load.kill()


def report(what: str, load: Load, verdict: Verdict, doubled: int) -> None:
    print(f"{what}: {len(load.acknowledged)} calls acknowledged, {verdict}, doubled={doubled}")  # noqa: T201 - shown by `pytest -s`


async def kill_writers(server: Server, *, times: int, fault: str = "") -> tuple[Verdict, int]:
    chance = random.Random(times)
    async with loaded(server, fault=fault) as load:
        for _ in range(times):
            await asyncio.sleep(chance.random() * 0.1)
            await load.kill()
            await load.start()
            await load.answers(ENOUGH)
        await load.kill()
        verdict, doubled = await load.judged()
        report(f"writer killed {times} times", load, verdict, doubled)
        return verdict, doubled


async def kill_postmaster(server: Server, *, times: int) -> tuple[Verdict, int, list[float]]:
    chance = random.Random(times)
    resumed: list[float] = []
    async with loaded(server) as load:
        for _ in range(times):
            await asyncio.sleep(chance.random() * 0.3)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            up = time.monotonic()
            await load.answers(1)
            resumed.append(time.monotonic() - up)
            await load.answers(ENOUGH)
        await load.kill()
        verdict, doubled = await load.judged()
        report(f"postmaster killed {times} times", load, verdict, doubled)
        print(f"appends resumed {max(resumed):.2f} s after its start")  # noqa: T201 - shown by `pytest -s`
        return verdict, doubled, resumed


@pytest.fixture(scope="module")
def crashing() -> Iterator[Server]:
    """A server to be killed; each test leaves it running."""
    with server_of(NEWEST) as server:
        server.start()
        yield server


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=[pytest.mark.chaos, pytest.mark.timeout(1800)])])
async def test_what_a_killed_writer_was_told_is_stored_once(crashing: Server, times: int) -> None:
    verdict, doubled = await kill_writers(crashing, times=times)
    assert (verdict, doubled) == (Verdict(events=verdict.events), 0)


@pytest.mark.parametrize("times", [2, pytest.param(10, marks=[pytest.mark.chaos, pytest.mark.timeout(1800)])])
async def test_what_was_acknowledged_survives_a_killed_postmaster_and_appends_resume(
    crashing: Server, times: int
) -> None:
    verdict, doubled, resumed = await kill_postmaster(crashing, times=times)
    assert (verdict, doubled) == (Verdict(events=verdict.events), 0)
    assert max(resumed) <= RESUMED_WITHIN_S


async def test_planted_an_answer_before_the_stores_own_is_noticed_as_lost(crashing: Server) -> None:
    verdict, _ = await kill_writers(crashing, times=1, fault=EARLY_ANSWERS)
    assert verdict.lost > 0


async def test_planted_new_ids_on_each_attempt_are_noticed_as_doubled(crashing: Server) -> None:
    _, doubled = await kill_writers(crashing, times=2, fault=NEW_IDS)
    assert doubled > 0


@pytest.mark.parametrize("durable", [True, False])
async def test_a_server_that_does_not_wait_for_its_log_is_made_to_wait(
    crashing: Server, durable: bool
) -> None:
    """Not durable is the planted fault: acknowledged events are lost, and who saw them refuses to go on."""
    url = new_database(crashing)
    storage = PostgresStorage(url, pool_size=1)
    async with EventStore(storage=storage) as store:
        await asyncio.to_thread(crashing.stop)
        await asyncio.to_thread(crashing.start, "synchronous_commit=off", "wal_writer_delay=10s")
        await store.horizon()
        if not durable:
            async with storage.pool.acquire() as connection:
                await connection.execute("SET synchronous_commit = off")
        told = {event.event_id for event in await store.append_events(batch_of(1))}
        await asyncio.to_thread(crashing.kill)
        await asyncio.to_thread(crashing.start)
        if not durable:
            with pytest.raises(CursorAheadError):
                await store.append_events(batch_of(2))
    async with EventStore(storage=PostgresStorage(url)) as anew:
        stored = [entry_of(event) async for event in anew.get_all_events()]
    assert judge(stored, told, []).lost == (0 if durable else BATCH)
