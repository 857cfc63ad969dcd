"""The Event Service for minutes at 70 % of its peak: does it grow, get slower, or keep what it took?

`python -m tests.benchmarks soak`; ESM_SOAK_MINUTES says how long (10). Requests start on a clock, whether or
not the ones before are answered, so that a stall shows in the times instead of hiding.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from typing import Any

import httpx2
import psutil

from eventsourcing.storage.postgres import PostgresStorage
from tests.benchmarks.http import a_body, a_request, free_port, posting, send_all, serving
from tests.benchmarks.measure import Report, bench_server, bench_store, conditions, percentiles

SHARE, CONNECTIONS, PERIOD_S, BARE_S = 0.7, 32, 5.0, 2.0

CHECKPOINT_S = 30

SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"


@dataclass(frozen=True, slots=True)
class Sample:
    """What a period came to."""

    at_s: float
    memory_mb: float
    files: int
    threads: int
    sessions: int
    tasks: int
    took: list[float]
    bare: list[float]


async def measure(report: Report) -> None:
    """Find the peak, then hold 70 % of it."""
    minutes = float(os.environ.pop("ESM_SOAK_MINUTES", "10"))
    with bench_server() as server:
        url = server.url("soak")
        async with bench_store(server, "soak", pool_size=2) as (_, storage):
            await storage.pool.fetchval(f"ALTER SYSTEM SET checkpoint_timeout = '{CHECKPOINT_S}s'")
            await storage.pool.fetchval("SELECT pg_reload_conf()")
            report.note(f"{await conditions(storage)}; a checkpoint every {CHECKPOINT_S} s")
            port, bare = free_port(), free_port()
            quiet = {"ESM_RATE_LIMIT": "0", "LOG_LEVEL": "WARNING"}
            with (
                serving("api.event_service", port, url, **quiet) as pid,
                serving("tests.benchmarks.bare_route", bare, url),
            ):
                await send_all(port, [a_request("/events", a_body(n)) for n in range(500)])
                peak = await posting(port, "/events", 3000, 0, [])()
                rate = peak * SHARE
                report.note(f"peak {peak:,.0f} events/s; held for {minutes:g} minutes: {rate:,.0f}")
                samples = await _held((port, bare), rate, minutes * 60, psutil.Process(pid), storage)
    _tell(report, samples)


async def _held(
    ports: tuple[int, int], rate: float, seconds: float, process: psutil.Process, storage: PostgresStorage
) -> list[Sample]:
    """Samples until the service was held for so long; the periods of the bare route do not count."""
    port, bare_port = ports
    samples: list[Sample] = []
    while (at := len(samples) * PERIOD_S) < seconds:
        took = await _period(port, rate, PERIOD_S)
        bare = await _period(bare_port, rate, BARE_S)
        sessions: Any = await storage.pool.fetchval(SESSIONS)
        tasks = await _tasks(port)
        memory = process.memory_info().rss / 2**20
        samples.append(
            Sample(at, memory, process.num_fds(), process.num_threads(), sessions, tasks, took, bare)
        )
    return samples


async def _tasks(port: int) -> int:
    """The tasks of the service's event loop, as it tells them itself."""
    async with httpx2.AsyncClient() as client:
        told = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    return int(float(told.partition("\nes_tasks ")[2].partition("\n")[0]))


async def _period(port: int, rate: float, seconds: float) -> list[float]:
    """Requests on a clock over some connections; how long each took from when it was due."""
    began, took, count = time.perf_counter(), list[float](), int(rate * seconds)
    numbers = iter(range(count))

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:
            due = began + number / rate
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            writer.write(a_request("/events", a_body(number)))
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            took.append(time.perf_counter() - due)
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    return took


def _tell(report: Report, samples: list[Sample]) -> None:
    third = max(len(samples) // 3, 1)
    first, last = samples[:third], samples[-third:]
    steady = samples[third:] or samples
    minutes = max(steady[-1].at_s - steady[0].at_s, PERIOD_S) / 60
    slope = (steady[-1].memory_mb - steady[0].memory_mb) / minutes
    report.note(
        f"memory {samples[0].memory_mb:.0f} to {samples[-1].memory_mb:.0f} MB; {slope:+.2f} MB a minute"
    )
    for name, part in (("first", first), ("last", last)):
        report.note(f"{name} third: {percentiles([took for sample in part for took in sample.took])}")
        report.note(f"{name} third, bare: {percentiles([took for sample in part for took in sample.bare])}")
    for name in ("files", "threads", "sessions", "tasks"):
        counts = [getattr(sample, name) for sample in samples]
        report.note(f"{name}: {min(counts)} to {max(counts)}")
