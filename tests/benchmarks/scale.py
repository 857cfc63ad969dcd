"""Cost against size: the same calls on 100,000 stored events and on ten million."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random

from rich.progress import Progress

from eventsourcing import EventQuery, EventStore
from tests.benchmarks.measure import ROUNDS, Report, Row, bench_server, bench_store
from tests.benchmarks.store import Bench, draft, frame

SMALL, LARGE = 100_000, 10_000_000
PIECE = 250_000
CALLS = 300
PREFIX = "scale"


async def measure(report: Report, *, large: int = LARGE) -> None:
    """Append, read and count in a small store and in a large one, on one server."""
    with bench_server() as server:
        figures: dict[str, list[float]] = {}
        for size in (SMALL, large):
            async with bench_store(server, f"scale_{size}") as (store, storage):
                await _fill(store, size)
                await storage.pool.driver.execute("VACUUM ANALYZE events")
                await storage.pool.driver.execute("CHECKPOINT")
                await store.get_event_stats()
                for what, calls in _calls(store, Bench(store, storage), size).items():
                    rates = [await calls() for _ in range(ROUNDS)]
                    figures.setdefault(what, []).append(statistics.median(rates))
        for what, (small, big) in figures.items():
            report.add(Row(f"{what}: {large:,} stored / {SMALL:,}", big, small, 0.8))


async def _fill(store: EventStore, size: int) -> None:
    with Progress(transient=True) as progress:
        task = progress.add_task(f"{size:,} events", total=size)
        await store.append_frame(
            (frame(min(PIECE, size - start), f"{PREFIX}{start}") for start in range(0, size, PIECE)),
            name=f"fill {size}",
            on_chunk=lambda manifest: progress.update(task, completed=manifest.rows),
        )


def _calls(store: EventStore, bench: Bench, size: int) -> dict[str, Callable[[], Awaitable[float]]]:
    random = Random(7)

    def stream() -> str:
        number = random.randrange(size)
        start = number // PIECE * PIECE
        return f"user-{PREFIX}{start}-{number - start}"

    return {
        "append_event, 32 callers": partial(bench.singles, 32),
        "append_events, 1,000 a batch": partial(bench.batches, 1_000),
        "append_event to a stored stream": partial(_each, lambda: store.append_event(draft(stream()))),
        "get_events of a stream": partial(_each, lambda: store.get_events(stream())),
        "the last page of a type": partial(_each, lambda: _last_page(store)),
        "get_event_stats": partial(_each, store.get_event_stats),
    }


async def _last_page(store: EventStore) -> None:
    query = EventQuery(event_types=("user.migrated", "migration.failed"), backwards=True, limit=100)
    async for _ in store.read_batches(query):
        pass


async def _each(call: Callable[[], Awaitable[object]]) -> float:
    """Calls a second, one after the other."""
    began = time.perf_counter()
    for _ in range(CALLS):
        await call()
    return CALLS / (time.perf_counter() - began)
