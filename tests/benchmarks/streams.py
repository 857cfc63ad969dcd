"""A thousand streams of one service: each gets every event, and how long after its commit."""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import sys
import time

import httpx2
import psutil

from eventsourcing import EventStore, UserMigratedEvent
from tests.api.conftest import ROOT, free_port
from tests.api.test_stream_crowd import streaming
from tests.benchmarks.measure import Report, bench_server, bench_store, percentiles

STREAMS, EVENTS, A_SECOND = 1000, 200, 20
TARGET_P99_S = 1.0


async def measure(report: Report) -> None:
    """Append at a steady pace; every stream notes when each event came."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with bench_server() as server:
        async with bench_store(server, "streams", pool_size=2) as (store, _):
            port = free_port()
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.api.inline_replay_service",
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "DATABASE_URL": server.url("streams"),
                    "ESM_REPLAY_SERVICE_PORT": str(port),
                    "ESM_CONCURRENT_REQUESTS": "0",
                },
                stderr=asyncio.subprocess.DEVNULL,
            )
            try:
                await _ready(port)
                await _measured(report, store, port, psutil.Process(process.pid))
            finally:
                process.terminate()
                await process.wait()


async def _ready(port: int) -> None:
    async with asyncio.timeout(60), httpx2.AsyncClient() as client:
        while True:
            try:
                if (await client.get(f"http://127.0.0.1:{port}/readyz")).is_success:
                    return
            except httpx2.TransportError:
                await asyncio.sleep(0.1)


async def _measured(report: Report, store: EventStore, port: int, service: psutil.Process) -> None:
    arrivals: list[list[float]] = [[] for _ in range(STREAMS)]
    live = asyncio.Semaphore(0)
    readers = [asyncio.create_task(_read(port, times, live)) for times in arrivals]
    for _ in range(STREAMS):
        await live.acquire()
    before, committed = service.memory_info().rss, list[float]()
    for number in range(EVENTS):
        began = time.perf_counter()
        await store.append_event(
            UserMigratedEvent(user_id=f"u-{number}", username="u" * 100, source_data={}, target_data={})
        )
        committed.append(time.perf_counter())
        await asyncio.sleep(max(0.0, 1 / A_SECOND - (time.perf_counter() - began)))
    async with asyncio.timeout(120):
        await asyncio.gather(*readers)
    delays = [
        arrived - commit for times in arrivals for arrived, commit in zip(times, committed, strict=True)
    ]
    p99 = statistics.quantiles(delays, n=100)[98]
    colour = "green" if p99 < TARGET_P99_S else "red"
    grown = (service.memory_info().rss - before) / 2**20
    report.note(
        f"{STREAMS} streams, {EVENTS} events at {A_SECOND} a second: every stream got each; commit to client "
        f"[{colour}]{percentiles(delays)}[/] (target p99 below {TARGET_P99_S:g} s); memory grew by "
        f"{grown:.0f} MiB; the clients share the machine and its cores"
    )


async def _read(port: int, times: list[float], live: asyncio.Semaphore) -> None:
    """Note when each event comes."""
    async with streaming(port, 0) as reader:
        while len(times) < EVENTS:
            line = await reader.readline()
            assert line, "the service ended a stream"
            if line == b"event: user.migrated\n":
                times.append(time.perf_counter())
            elif line == b"event: caught-up\n":
                live.release()
