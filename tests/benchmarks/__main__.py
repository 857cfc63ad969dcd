"""Measure the event store against the database's own speed, in the same run: `make bench`.

Each figure stands beside its baseline: the same rows into the same table, or out of it, without our code.
Baseline and measurement alternate, and the median of the rounds is shown. Nothing is asserted.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import asyncpg
from rich.console import Console
from rich.table import Table

from eventsourcing import EventReplay, EventReplayConfig, EventStore, UserMigratedEvent
from eventsourcing.drafts import prepare
from eventsourcing.events import BaseEvent, new_event_id
from eventsourcing.storage.base import NewEvent
from eventsourcing.storage.embedded import EmbeddedPostgres
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.testing import InMemoryHandler

ROUNDS = 3
SINGLES = 1_000
BATCHED = 20_000

INSERT = """INSERT INTO events (event_id, event_type, aggregate_id, aggregate_type, event_version,
                                "timestamp", correlation_id, causation_id, metadata, data)
            VALUES ($1, $2, $3, $4, 1, $5, $6, $7, $8, $9)"""
COLUMNS = [
    "event_id",
    "event_type",
    "aggregate_id",
    "aggregate_type",
    "event_version",
    "timestamp",
    "correlation_id",
    "causation_id",
    "metadata",
    "data",
]

Timed = Callable[[], Awaitable[float]]


def draft() -> BaseEvent:
    """A user event of about 350 bytes, in a stream of its own."""
    row = {"id": 17, "username": "ann", "note": "n" * 40, "enabled": True, "used_traffic": 1234567890}
    return UserMigratedEvent(user_id=f"user-{uuid4().hex}", username="ann", source_data=row, target_data=row)


def values(new: NewEvent) -> tuple[object, ...]:
    """The row that a bare INSERT or COPY writes for a draft, with an id of its own."""
    event = new.event
    return (
        new_event_id(),
        str(event.event_type),
        uuid4().hex,
        event.aggregate_type,
        event.timestamp,
        event.correlation_id,
        event.causation_id,
        new.metadata,
        new.data,
    )


class Bench:
    """One store, and the pool beneath it for the baselines."""

    def __init__(self, store: EventStore, pool: asyncpg.Pool) -> None:
        self.store, self.pool = store, pool

    async def append_singles(self, callers: int) -> float:
        events = [draft() for _ in range(SINGLES)]

        async def work(mine: list[BaseEvent]) -> None:
            for event in mine:
                await self.store.append_event(event)

        return await rate(SINGLES, *(work(events[place::callers]) for place in range(callers)))

    async def insert_singles(self, callers: int) -> float:
        rows = [values(new) for new in prepare([draft() for _ in range(SINGLES)])]

        async def work(mine: list[tuple[object, ...]]) -> None:
            for row in mine:
                await self.pool.execute(INSERT, *row)

        return await rate(SINGLES, *(work(rows[place::callers]) for place in range(callers)))

    async def append_batches(self, size: int) -> float:
        events = [draft() for _ in range(BATCHED)]

        async def work() -> None:
            for start in range(0, BATCHED, size):
                await self.store.append_events(events[start : start + size])

        return await rate(BATCHED, work())

    async def copy_batches(self, size: int) -> float:
        rows = [values(new) for new in prepare([draft() for _ in range(BATCHED)])]
        records = [(*row[:4], 1, *row[4:]) for row in rows]

        async def work() -> None:
            for start in range(0, BATCHED, size):
                await self.pool.copy_records_to_table(
                    "events", columns=COLUMNS, records=records[start : start + size]
                )

        return await rate(BATCHED, work())

    async def replay(self) -> float:
        replay = EventReplay(self.store, EventReplayConfig(batch_size=5_000))
        replay.add_handler(InMemoryHandler(types=["nothing"]))
        began = time.perf_counter()
        result = await replay.replay_all_events()
        return result.total_events / (time.perf_counter() - began)

    async def fetch(self) -> float:
        async def work() -> int:
            position, count = 0, 0
            while rows := await self.pool.fetch(
                "SELECT * FROM events WHERE position > $1 ORDER BY position LIMIT 5000", position
            ):
                position, count = rows[-1]["position"], count + len(rows)
            return count

        began = time.perf_counter()
        count = await work()
        return count / (time.perf_counter() - began)


async def rate(count: int, *work: Awaitable[None]) -> float:
    """How many a second, for `count` done by these coroutines together."""
    began = time.perf_counter()
    await asyncio.gather(*work)
    return count / (time.perf_counter() - began)


async def compared(ours: Timed, bare: Timed) -> tuple[float, float]:
    """The median of ours and of the baseline, alternating."""
    mine, theirs = [], []
    for _ in range(ROUNDS):
        theirs.append(await bare())
        mine.append(await ours())
    return statistics.median(mine), statistics.median(theirs)


async def main(url: str) -> None:
    """Measure everything and print one table."""
    console = Console()
    storage = PostgresStorage(url, pool_size=32)
    async with EventStore(storage=storage) as store:
        bench = Bench(store, storage.pool)
        version = await storage.pool.fetchval("SHOW server_version")
        fsync = await storage.pool.fetchval("SHOW fsync")
        table = Table(
            width=80,
            title=f"events/s, median of {ROUNDS}; PostgreSQL {version}, fsync {fsync}, "
            f"{os.cpu_count()} cores, Python {platform.python_version()}",
        )
        for column in ("what", "ours", "baseline", "ratio"):
            table.add_column(column, justify="left" if column == "what" else "right")

        async def row(name: str, ours: Timed, bare: Timed) -> None:
            mine, theirs = await compared(ours, bare)
            table.add_row(name, f"{mine:,.0f}", f"{theirs:,.0f}", f"{mine / theirs:.2f}")

        for callers in (1, 16, 32):
            await row(
                f"append_event, {callers} callers / bare INSERT",
                lambda n=callers: bench.append_singles(n),  # type: ignore[misc]  # bound here
                lambda n=callers: bench.insert_singles(n),  # type: ignore[misc]  # bound here
            )
        for size in (100, 1_000):
            await row(
                f"append_events, {size} a batch / COPY",
                lambda n=size: bench.append_batches(n),  # type: ignore[misc]  # bound here
                lambda n=size: bench.copy_batches(n),  # type: ignore[misc]  # bound here
            )
        await row("replay through a handler / bare fetch", bench.replay, bench.fetch)
        console.print(table)
        console.print(
            f"Stored at the end: {await storage.head():,}; time-ordered ids, payloads of 350 bytes."
        )


if __name__ == "__main__":
    directory = Path(tempfile.mkdtemp(prefix="esm-bench-"))
    directory.chmod(0o755)
    server = EmbeddedPostgres(directory)
    server.start()
    try:
        server.ensure_database("bench")
        asyncio.run(main(server.url("bench")))
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)
