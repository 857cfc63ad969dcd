"""How a figure is taken: ours and its baseline in the same run, alternating, the median of the rounds.

Absolute values say little on a shared machine; a ratio of two measurements taken in turn does.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sqlalchemy.engine import make_url

from eventsourcing import EventStore
from eventsourcing.storage.embedded import EmbeddedPostgres
from eventsourcing.storage.postgres import PostgresStorage

ROUNDS = 3

Timed = Callable[[], Awaitable[float]]
"""Does some work and returns a rate."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure beside its baseline. `target` is what the ratio should reach; None where none is set."""

    what: str
    ours: float
    baseline: float
    target: float | None = None

    @property
    def ratio(self) -> float:
        """Ours over the baseline."""
        return self.ours / self.baseline


@dataclass
class Report:
    """Figures of one run, printed as they come in."""

    console: Console = field(default_factory=Console)
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Keep a figure and show it."""
        self.rows.append(row)
        self.console.print(f"  {row.what}: {row.ours:,.0f} against {row.baseline:,.0f} = {row.ratio:.2f}")

    def note(self, text: str) -> None:
        """Show a figure that has no baseline."""
        self.console.print(f"  {text}")

    def show(self, title: str) -> None:
        """Print all figures as one table."""
        table = Table(title=title, title_justify="left")
        for column in ("what", "ours", "baseline", "ratio", "target"):
            table.add_column(column, justify="left" if column == "what" else "right")
        for row in self.rows:
            target = "" if row.target is None else f"≥ {row.target:g}"
            met = row.target is None or row.ratio >= row.target
            ratio = f"{row.ratio:.2f}" if met else f"[bold red]{row.ratio:.2f}[/]"
            table.add_row(row.what, f"{row.ours:,.0f}", f"{row.baseline:,.0f}", ratio, target)
        self.console.print(table)


async def rate(count: int, *work: Awaitable[object]) -> float:
    """How many a second, for `count` done by these coroutines together."""
    began = time.perf_counter()
    await asyncio.gather(*work)
    return count / (time.perf_counter() - began)


async def compared(
    what: str, ours: Timed, baseline: Timed, *, target: float | None = None, rounds: int = ROUNDS
) -> Row:
    """Measure both in turn; the row of their medians."""
    mine, theirs = [], []
    for _ in range(rounds):
        theirs.append(await baseline())
        mine.append(await ours())
    return Row(what, statistics.median(mine), statistics.median(theirs), target)


def percentiles(values: list[float]) -> str:
    """p50, p95, p99 and p99.9 of durations in seconds, in milliseconds."""
    ordered = sorted(values)
    return ", ".join(
        f"p{name} {ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000:.2f} ms"
        for name, share in (("50", 0.5), ("95", 0.95), ("99", 0.99), ("99.9", 0.999))
    )


@contextmanager
def bench_server() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL server of its own, with fsync on, removed at the end."""
    directory = Path(tempfile.mkdtemp(prefix="esm-bench-"))
    directory.chmod(0o755)
    server = EmbeddedPostgres(directory)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


@asynccontextmanager
async def bench_store(
    server: EmbeddedPostgres, database: str, *, pool_size: int = 32
) -> AsyncIterator[tuple[EventStore, PostgresStorage]]:
    """A store in a database of the server, and the storage beneath it."""
    server.ensure_database(database)
    storage = PostgresStorage(server.url(database), pool_size=pool_size)
    async with EventStore(storage=storage) as store:
        yield store, storage


async def conditions(storage: PostgresStorage) -> str:
    """What the figures were taken on."""
    shown = {
        name: await storage.pool.fetchval(f"SHOW {name}")
        for name in ("server_version", "fsync", "synchronous_commit", "shared_buffers")
    }
    return (
        f"PostgreSQL {shown['server_version']}, fsync {shown['fsync']}, synchronous_commit "
        f"{shown['synchronous_commit']}, shared_buffers {shown['shared_buffers']}; {os.cpu_count()} cores, "
        f"Python {platform.python_version()}; payloads of 350 bytes, time-ordered ids"
    )


def plain_url(url: str) -> str:
    """The URL as drivers without SQLAlchemy read it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
