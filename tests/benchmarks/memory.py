"""Peak memory of long work, each in a process of its own."""

from __future__ import annotations

import asyncio
import sys
import time

from eventsourcing import EventQuery, EventReplay, EventReplayConfig, EventStore
from eventsourcing.bootstrap import collect_rarely
from eventsourcing.readmodels import USER_MIGRATIONS_MODEL
from eventsourcing.rebuilds import rebuild
from eventsourcing.replay_runs import run_replay
from eventsourcing.replays import ReplayJournal, ReplayRequest
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.testing import InMemoryHandler
from tests.benchmarks.measure import Report, bench_server, bench_store
from tests.benchmarks.store import frame
from tests.peak import peak_memory_mb

COUNT = 5_000_000
REPLAYED = 1_000_000
PIECE = 100_000


async def measure(report: Report, *, count: int = COUNT) -> None:
    """Append `count` rows as columns, stream them all, replay a million of them; fold a million durably."""
    million = min(count, REPLAYED)
    with bench_server() as server:
        for database, work in (
            ("memory", (("append_frame", count), ("read", count), ("replay", million))),
            ("durable", (("append_frame", million), ("named_replay", million), ("rebuild", million))),
        ):
            async with bench_store(server, database) as _:
                pass
            for what, rows in work:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "tests.benchmarks.memory", what, str(rows), server.url(database),
                    stdout=asyncio.subprocess.PIPE,
                )  # fmt: skip
                output, _ = await process.communicate()
                report.note(output.decode().strip())


async def _append_frame(store: EventStore, count: int) -> None:
    pieces = (frame(PIECE, f"memory{start}") for start in range(0, count, PIECE))
    await store.append_frame(pieces, name="memory")


async def _read(store: EventStore, count: int) -> None:
    seen = 0
    async for batch in store.read_batches(EventQuery(limit=count), batch_size=5_000):
        seen += len(batch)
    assert seen == count


async def _replay(store: EventStore, count: int) -> None:
    replay = EventReplay(store, EventReplayConfig(batch_size=1_000))
    replay.add_handler(InMemoryHandler(types=["nothing"]))
    result = await replay.replay(EventQuery(limit=count))
    assert result.processed_events == count


async def _named_replay(store: EventStore, count: int) -> None:
    """Three folds into shadows, hashed and held against the live read models, which catch up first."""
    replay_id = await ReplayJournal(store.storage).create(ReplayRequest(replay_type="all"))
    row = await run_replay(store, replay_id)
    assert (row["status"], row["total_events"]) == ("completed", count)
    assert {one["rows"] for one in row["difference"].values()} == {0}


async def _rebuild(store: EventStore, count: int) -> None:
    result = await rebuild(store.storage, USER_MIGRATIONS_MODEL)
    assert result.difference is not None
    assert (result.difference.same, result.difference.rows) == (count, 0)


WORK = {
    "append_frame": _append_frame,
    "read": _read,
    "replay": _replay,
    "named_replay": _named_replay,
    "rebuild": _rebuild,
}


async def main(what: str, count: int, url: str) -> None:
    """Do the work and print how long it took and what it held at most."""
    collect_rarely()
    began = time.perf_counter()
    async with EventStore(storage=PostgresStorage(url)) as store:
        await WORK[what](store, count)
    seconds = time.perf_counter() - began
    peak = round(peak_memory_mb())
    sys.stdout.write(f"{what} of {count:,} events: {count / seconds:,.0f}/s, peak memory {peak} MB\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
