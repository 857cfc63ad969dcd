"""The store against the database's own speed, and against the PyPI library `eventsourcing`."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from uuid import uuid4

import asyncpg
import polars as pl
from sqlalchemy.engine import make_url

from eventsourcing import EventReplay, EventReplayConfig, EventStore, UserMigratedEvent
from eventsourcing.columnar import RowIds, to_chunk
from eventsourcing.drafts import prepare
from eventsourcing.events import BaseEvent
from eventsourcing.handlers import EventHandler
from eventsourcing.storage import copyformat, postgres_frames
from eventsourcing.storage.postgres import PostgresStorage
from tests.benchmarks.measure import (
    Report,
    Row,
    bench_server,
    bench_store,
    compared,
    conditions,
    percentiles,
    plain_url,
    rate,
)

SINGLES = 2_000
BATCHED = 50_000
FRAMED = 200_000
READ = 200_000
RIVAL = "eventsourcing[postgres]==9.5.6"

INSERT = """INSERT INTO events (event_id, event_type, aggregate_id, aggregate_type, event_version,
                                "timestamp", correlation_id, causation_id, metadata, data)
            VALUES ($1, $2, $3, $4, 1, $5, $6, $7, $8, $9)"""
BARE_TABLE = "CREATE TABLE bare (LIKE events INCLUDING DEFAULTS, PRIMARY KEY (position))"
PAGE = "SELECT * FROM events WHERE position > $1 ORDER BY position LIMIT 5000"

ROW = {"id": 17, "username": "ann", "note": "n" * 40, "enabled": True, "used_traffic": 1234567890}


def draft(aggregate_id: str | None = None) -> BaseEvent:
    """A user event of about 350 bytes, in a stream of its own unless one is given."""
    user = aggregate_id or f"user-{uuid4().hex}"
    return UserMigratedEvent(user_id=user, username="ann", source_data=ROW, target_data=ROW)


def drafts(count: int) -> list[BaseEvent]:
    return [draft() for _ in range(count)]


def frame(count: int, prefix: str) -> pl.DataFrame:
    """The same events as columns, in streams numbered as a migration numbers them."""
    payload = {
        "username": "ann",
        "source_data": ROW,
        "target_data": ROW,
        "migrated_at": "2026-01-01T00:00:00Z",
    }
    return pl.select(number=pl.int_range(count)).select(
        event_type=pl.lit("user.migrated"),
        aggregate_id=pl.lit(f"user-{prefix}-") + pl.col("number").cast(pl.String),
        aggregate_type=pl.lit("user"),
        data=pl.lit(json.dumps(payload, separators=(",", ":"))),
    )


class _Nothing(EventHandler):
    """Takes every event and does nothing with it."""

    def can_handle(self, event_type: str) -> bool:
        return bool(event_type)

    async def handle(self, event: BaseEvent) -> None:
        """Nothing."""


class Bench:
    """One store, and the pool beneath it for the baselines."""

    def __init__(self, store: EventStore, storage: PostgresStorage) -> None:
        self.store, self.pool = store, storage.pool.driver
        self.latencies: list[float] = []

    async def singles(self, callers: int) -> float:
        """Events a second, one event an append."""
        events = drafts(SINGLES)
        self.latencies.clear()

        async def work(mine: list[BaseEvent]) -> None:
            for event in mine:
                began = time.perf_counter()
                await self.store.append_event(event)
                self.latencies.append(time.perf_counter() - began)

        return await rate(SINGLES, *(work(events[place::callers]) for place in range(callers)))

    async def bare_singles(self, callers: int) -> float:
        """The same rows by one INSERT each."""
        rows = [
            (e.event_id, e.event_type, e.aggregate_id, e.aggregate_type, e.timestamp, None, None, meta, data)
            for e, _, data, meta in prepare(drafts(SINGLES))
        ]

        async def work(mine: Sequence[tuple[object, ...]]) -> None:
            for row in mine:
                await self.pool.execute(INSERT, *row)

        return await rate(SINGLES, *(work(rows[place::callers]) for place in range(callers)))

    async def batches(self, size: int) -> float:
        events = drafts(BATCHED)
        gc.freeze()  # the drafts are the caller's: looking through them is no work of the append

        async def work() -> None:
            for start in range(0, BATCHED, size):
                await self.store.append_events(events[start : start + size])

        return await rate(BATCHED, work())

    async def drawn(self, count: int) -> int:
        """Draw positions for a baseline that writes them itself; the first one."""
        last = await self.pool.fetchval(
            "SELECT setval('event_positions', nextval('event_positions') + $1)", count
        )
        return int(last) - count

    async def bare_batches(self, size: int) -> float:
        """The same rows by the driver's binary COPY, every column given."""
        first, now = await self.drawn(BATCHED), datetime.now(UTC)
        rows = [
            (
                first + n,
                now,
                e.timestamp,
                e.event_id,
                1,
                None,
                None,
                e.event_type,
                e.aggregate_id,
                "user",
                meta,
                data,
            )
            for n, (e, _, data, meta) in enumerate(prepare(drafts(BATCHED)))
        ]

        async def work() -> None:
            for start in range(0, BATCHED, size):
                await self.pool.copy_records_to_table(
                    "events", columns=copyformat.COLUMNS, records=rows[start : start + size]
                )

        return await rate(BATCHED, work())

    async def frames(self, *, grown: bool) -> float:
        """Rows a second of the columnar append: into new streams, or into streams that exist."""
        rows = frame(FRAMED, uuid4().hex[:8])
        if grown:
            await self.store.append_frame(rows, name=f"before {uuid4()}")
        return await rate(FRAMED, self.store.append_frame(rows, name=f"measured {uuid4()}"))

    async def bare_frames(self, table: str = "events") -> float:
        """The same bytes by COPY."""
        first, rows = await self.drawn(FRAMED), frame(FRAMED, uuid4().hex[:8])
        ids, now = RowIds(str(uuid4()), datetime.now(UTC)), datetime.now(UTC)
        written = []
        for start in range(0, FRAMED, 10_000):
            chunk = to_chunk(rows.slice(start, 10_000), ids, first_row=start)
            positions = list(range(first + start, first + start + 10_000))
            placed = postgres_frames.placed(chunk.frame, postgres_frames.NO_HEADS, positions)
            assert placed is not None
            written.append([piece async for piece in postgres_frames.pieces(placed, now)])

        async def work() -> None:
            for chunks in written:
                source = io.BytesIO(b"".join(chunks))
                await self.pool.copy_to_table(
                    table, source=source, columns=copyformat.COLUMNS, format="binary"
                )

        return await rate(FRAMED, work())

    async def replay(self) -> float:
        replay = EventReplay(self.store, EventReplayConfig(batch_size=5_000))
        replay.add_handler(_Nothing())
        began = time.perf_counter()
        result = await replay.replay_all_events()
        return result.total_events / (time.perf_counter() - began)

    async def bare_fetch(self, raw: asyncpg.Connection) -> float:
        """The same rows by the driver, JSON undecoded."""
        began, position, count = time.perf_counter(), 0, 0
        while rows := await raw.fetch(PAGE, position):
            position, count = rows[-1]["position"], count + len(rows)
        return count / (time.perf_counter() - began)


async def rival(url: str, callers: int) -> dict[str, float]:
    """The library's figures on the same server, from a process and an environment of its own."""
    parsed = make_url(url)
    uv = Path(sys.executable).with_name("uv")
    process = await asyncio.create_subprocess_exec(
        uv, "run", "--quiet", "--no-project", "--with", RIVAL, "python", Path(__file__).with_name("rival.py"),
        str(parsed.query["host"]), str(parsed.database), *map(str, (SINGLES, 20_000, 1_000, callers)),
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the benchmark of {RIVAL} failed")
    figures: dict[str, float] = json.loads(output)
    return figures


async def measure(report: Report) -> None:
    """All figures of the store that do not depend on its size."""
    with bench_server() as server:
        async with bench_store(server, "bench") as (store, storage):
            report.note(await conditions(storage))
            bench = Bench(store, storage)
            singles = await _singles(report, bench)
            batches = await _batches(report, bench)
            await _frames(report, bench)
            report.note(f"the library {RIVAL}, in an environment of its own:")
            theirs = await rival(server.url("bench"), callers=32)
            for count in (1, 32):
                figure = theirs[f"one a transaction, {count} callers"]
                what = f"append_event, {count} callers / its recorder"
                report.add(Row(what, singles[count], figure, 5 if count == 32 else None))
            for name in ("recorder", "Application.save"):
                report.add(Row(f"append_events, 1,000 a batch / its {name}", batches, theirs[name], 2))
        async with bench_store(server, "reading") as (store, storage):
            await store.append_frame(frame(READ, "read"), name="read")
            await storage.pool.driver.execute("VACUUM ANALYZE events")
            raw = await asyncpg.connect(plain_url(server.url("reading")))
            reading = Bench(store, storage)
            report.add(
                await compared(
                    "replay through a no-op handler / undecoded rows",
                    reading.replay,
                    lambda: reading.bare_fetch(raw),
                    target=0.6,
                )
            )
            await raw.close()


async def _singles(report: Report, bench: Bench) -> dict[int, float]:
    rates = {}
    for callers in (1, 16, 32):
        row = await compared(
            f"append_event, {callers} callers / bare INSERT",
            partial(bench.singles, callers),
            partial(bench.bare_singles, callers),
            target=0.8 if callers == 32 else None,
        )
        report.add(row)
        report.note(f"append_event, {callers} callers: {percentiles(bench.latencies)}")
        rates[callers] = row.ours
    return rates


async def _batches(report: Report, bench: Bench) -> float:
    rates = {}
    for size in (10, 100, 1_000, 10_000):
        row = await compared(
            f"append_events, {size:,} a batch / binary COPY",
            partial(bench.batches, size),
            partial(bench.bare_batches, size),
            target=0.6 if size == 1_000 else None,
        )
        report.add(row)
        rates[size] = row.ours
    return rates[1_000]


async def _frames(report: Report, bench: Bench) -> None:
    for what, grown, target in (("new streams", False, 0.9), ("streams that exist", True, 0.5)):
        ours, baseline = partial(bench.frames, grown=grown), partial(bench.bare_frames)
        report.add(await compared(f"append_frame, {what} / COPY of the bytes", ours, baseline, target=target))
    await bench.pool.execute(BARE_TABLE)
    report.add(
        await compared(
            "the table by COPY / one with its primary key only",
            bench.bare_frames,
            partial(bench.bare_frames, table="bare"),
            target=0.6,
        )
    )
