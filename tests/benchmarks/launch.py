"""From a request to its result: the short jobs over HTTP, beside an empty one-op job of the same launcher."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx2

from api.embedded_launcher import LONG_LANES, EmbeddedLauncher
from api.replay_service import create_app
from eventsourcing import EventStore, Settings
from eventsourcing.testing import a_migration
from tests.benchmarks.measure import Report, bench_server, percentiles

ROUNDS = 60
TARGET_RATIO, TARGET_P95_S = 1.5, 0.150

Once = Callable[[], Awaitable[None]]


async def measure(report: Report) -> None:
    """Cold and warm, each kind of request in turn with the empty job."""
    with bench_server() as server, tempfile.TemporaryDirectory() as directory:
        for database in ("launch", "launch_dagster"):
            server.ensure_database(database)
        settings = Settings(
            database_url=server.url("launch"),
            dagster_database_url=server.url("launch_dagster", driver="psycopg2"),
            data_dir=Path(directory),
        )
        launcher = EmbeddedLauncher(settings, definitions="tests.benchmarks.definitions")
        began = time.perf_counter()
        app = create_app(settings, launcher)
        transport = httpx2.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://service", timeout=60) as client,
        ):
            report.note(f"service ready after {time.perf_counter() - began:.2f} s")
            await app.state.jobs.started()
            report.note(f"jobs can start after {time.perf_counter() - began:.2f} s")
            store: EventStore = app.state.system.store
            await store.append_events(a_migration())
            await _compare(report, client, launcher)


async def _compare(report: Report, client: httpx2.AsyncClient, launcher: EmbeddedLauncher) -> None:
    async def empty() -> None:
        assert await launcher.wait(await launcher.submit("empty", {}, {}), 30)

    def post(path: str, **body: object) -> Once:
        async def request() -> None:
            response = await client.post(path, json={"aggregate_id": "migration-123", **body})
            assert response.is_success, response.text

        return request

    asked = {
        "POST /snapshot": post("/snapshot"),
        "POST /validate-sequence": post("/validate-sequence", expected_sequence=["migration.started"]),
    }
    for name, request in asked.items():
        report.note(f"{name}, the first: {await _timed(request) * 1000:.0f} ms")
    times: dict[str, list[float]] = {name: [] for name in ("empty", *asked)}
    for _ in range(LONG_LANES):  # they take turns, and each starts with its first run
        await _timed(empty)
    for _ in range(ROUNDS):
        times["empty"].append(await _timed(empty))
        for name, request in asked.items():
            times[name].append(await _timed(request))
    report.note(f"an empty one-op job: {percentiles(times['empty'])}")
    for name in asked:
        ratio = statistics.median(times[name]) / statistics.median(times["empty"])
        met = ratio <= TARGET_RATIO and sorted(times[name])[int(ROUNDS * 0.95)] < TARGET_P95_S
        colour = "green" if met else "red"
        report.note(
            f"{name}: {percentiles(times[name])}; [{colour}]p50 {ratio:.2f} of it[/] "
            f"(target at most {TARGET_RATIO}, p95 below {TARGET_P95_S * 1000:.0f} ms)"
        )


async def _timed(request: Once) -> float:
    began = time.perf_counter()
    await request()
    return time.perf_counter() - began
