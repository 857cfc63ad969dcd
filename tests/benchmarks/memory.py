"""Peak memory of long work, each in a process of its own."""

from __future__ import annotations

import asyncio
import resource
import sys
import time

from eventsourcing import EventQuery, EventReplay, EventReplayConfig, EventStore
from eventsourcing.bootstrap import collect_rarely
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.testing import InMemoryHandler
from tests.benchmarks.measure import Report, bench_server, bench_store
from tests.benchmarks.store import frame

COUNT = 5_000_000
REPLAYED = 1_000_000
PIECE = 100_000


async def measure(report: Report, *, count: int = COUNT) -> None:
    """Append `count` rows as columns, stream them all, replay a million of them."""
    with bench_server() as server:
        async with bench_store(server, "memory") as _:
            pass
        for what, rows in (("append_frame", count), ("read", count), ("replay", min(count, REPLAYED))):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.benchmarks.memory", what, str(rows), server.url("memory"),
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


WORK = {"append_frame": _append_frame, "read": _read, "replay": _replay}


async def main(what: str, count: int, url: str) -> None:
    """Do the work and print how long it took and what it held at most."""
    collect_rarely()
    began = time.perf_counter()
    async with EventStore(storage=PostgresStorage(url)) as store:
        await WORK[what](store, count)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sys.stdout.write(f"{what} of {count:,} events: {count / seconds:,.0f}/s, peak memory {peak} MB\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
