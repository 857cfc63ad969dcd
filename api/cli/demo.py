"""`esm demo`: a whole migration on this machine, from nothing to proven statistics.

A legacy panel is generated with planted defects, moved into a new target by the `migrate` job, watched
through its events, and then proven: statistics, quarantine, sequence, snapshot, replay.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import uuid4

import typer
from rich.text import Text

from api.cli.demo_data import DemoData, prepare_demo
from api.cli.demo_watch import watch
from api.cli.screen import console, pairs, table
from api.launcher import Launcher, make_launcher
from eventsourcing.bootstrap import System, open_system
from eventsourcing.catalogue import MIGRATION_SEQUENCE
from eventsourcing.config import Settings
from eventsourcing.errors import UnavailableError
from eventsourcing.events import EventType
from eventsourcing.query import EventQuery
from eventsourcing.readmodels import MIGRATION_STATISTICS_MODEL, READ_MODELS
from eventsourcing.replays import ReplayJournal, ReplayRequest
from eventsourcing.storage.embedded import EmbeddedPostgres
from resources.dagster_home import apply_environment, prepare_dagster_home
from resources.results import JobResults

JOB_TIMEOUT_S = 600
"""How long one job of the demo may take."""

SHOWN_STATISTICS = (
    "status",
    "extracted_count",
    "transformed_count",
    "validated_count",
    "imported_count",
    "user_count",
    "admin_count",
    "duration_seconds",
)


app = typer.Typer()


@app.command()
def demo(
    users: Annotated[int, typer.Option(min=100, help="How many legacy users to generate.")] = 5000,
) -> None:
    """Run a whole migration here: generate, migrate by a Dagster job, prove, replay."""
    began = time.monotonic()
    settings = Settings.load()
    embedded = EmbeddedPostgres(settings.data_dir) if settings.database_url is None else None
    started = embedded is not None and embedded.start()
    try:
        apply_environment(prepare_dagster_home(settings))
        settings = Settings.load()
        with console.status("Generating a legacy panel and an empty target"):
            data = prepare_demo(settings, users=users)
        console.print(
            f"A legacy panel of {users:,} users, {sum(data.planted.values())} of its records with planted "
            "defects, and an empty PostgreSQL target."
        )
        ok = asyncio.run(_demo(settings, data))
    finally:
        if embedded is not None and started:
            embedded.stop_if_idle()
    _farewell(settings, time.monotonic() - began)
    if not ok:
        raise typer.Exit(1)


async def _demo(settings: Settings, data: DemoData) -> bool:
    migration_id = datetime.now(UTC).strftime("demo-%Y%m%d-%H%M%S")
    console.rule(f"[bold]{migration_id}")
    launcher = make_launcher(settings)
    async with open_system(settings) as system:
        with console.status("Warming a worker process for Dagster's runs"):
            await launcher.start()
        try:
            await _migrate(system, launcher, data, migration_id)
            checks = [
                await _show_statistics(system, migration_id),
                await _show_quarantine(system, data, migration_id),
                await _validate(system, launcher, migration_id),
                await _snapshot(system, launcher, migration_id),
                await _replay(system, launcher, migration_id),
            ]
        finally:
            await launcher.stop()
    return all(checks)


async def _migrate(system: System, launcher: Launcher, data: DemoData, migration_id: str) -> None:
    """Run the `migrate` job and show what its events say while it runs."""
    begin = await system.store.horizon()
    run_id = await launcher.submit(
        "migrate",
        {
            "mapping": data.mapping,
            "source": data.source,
            "target": data.target,
            "migration_id": migration_id,
        },
        {"migration_id": migration_id, "source": "demo"},
    )
    watching = asyncio.create_task(watch(system.store, migration_id, after=begin))
    succeeded = await launcher.wait(run_id, JOB_TIMEOUT_S)
    if not succeeded:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        raise UnavailableError(await _why_failed(system, migration_id) + f" (Dagster run {run_id})")
    await watching


async def _why_failed(system: System, migration_id: str) -> str:
    query = EventQuery(aggregate_id=migration_id, event_types=(EventType.MIGRATION_FAILED,))
    async for event in system.store.read(query):
        return f"the migration failed: {event.data['error_message']}"
    return "the migration failed before it could say why"


async def _show_statistics(system: System, migration_id: str) -> bool:
    for model in READ_MODELS:
        await model.catch_up(system.store.storage)
    stats = await MIGRATION_STATISTICS_MODEL.stats(system.store.storage, migration_id)
    console.print(pairs("Statistics, from the read model", {name: stats[name] for name in SHOWN_STATISTICS}))
    return bool(stats["status"] == "completed")


async def _show_quarantine(system: System, data: DemoData, migration_id: str) -> bool:
    """Compare what was set aside, and why, with what was planted."""
    actual: dict[str, int] = {}
    started = (await system.store.get_events(migration_id))[0]
    query = EventQuery(
        correlation_id=started.correlation_id or started.event_id,
        event_types=(EventType.RECORD_QUARANTINED,),
    )
    async for event in system.store.read(query):
        name = data.defect_of(event.data)
        actual[name] = actual.get(name, 0) + 1
    rows = [
        (
            name,
            data.planted.get(name, 0),
            actual.get(name, 0),
            Text.from_markup(_tick(data.planted.get(name) == actual.get(name))),
        )
        for name in sorted({*data.planted, *actual})
    ]
    console.print(table("Planted defects, set aside", ("defect", "planted", "found", ""), rows))
    return data.planted == actual


async def _validate(system: System, launcher: Launcher, migration_id: str) -> bool:
    expected = [str(event_type) for event_type in MIGRATION_SEQUENCE]
    result = await _ask(
        system, launcher, "validate_sequence", {"aggregate_id": migration_id, "expected_sequence": expected}
    )
    valid = bool(result["is_valid"])
    console.print(f"{_tick(valid)} sequence: {' → '.join(result['actual_sequence'])}")
    return valid


async def _snapshot(system: System, launcher: Launcher, migration_id: str) -> bool:
    result = await _ask(system, launcher, "snapshot", {"aggregate_id": migration_id}, op="create_snapshot")
    console.print(
        f"{_tick(True)} snapshot at version {result['version']}, position {result['position']:,}, "
        f"state {result['state_hash'][:12]}"
    )
    live = await MIGRATION_STATISTICS_MODEL.stats(system.store.storage, migration_id)
    same = bool(result["state"] == live)
    console.print(f"{_tick(same)} the snapshot's state equals the live read model")
    return same


async def _replay(system: System, launcher: Launcher, migration_id: str) -> bool:
    """Replay twice into states of their own: both must come to the same state."""
    rows = []
    for _ in range(2):
        replay_id = await ReplayJournal(system.store.storage).create(
            ReplayRequest(replay_type="all", batch_size=1000)
        )
        await _run(
            launcher,
            "replay",
            {"ops": {"replay_events": {"config": {"replay_id": replay_id}}}},
            {"replay_id": replay_id, "migration_id": migration_id},
        )
        row = await ReplayJournal(system.store.storage).get(replay_id)
        assert row is not None, "the journal keeps every replay"
        rows.append(row)
    same = rows[0]["state_hashes"] == rows[1]["state_hashes"] and not rows[0]["failed_events"]
    events, rate = rows[0]["processed_events"], rows[0]["rate"]
    console.print(f"{_tick(same)} replay of {events:,} events ({rate:,.0f}/s), twice: the same state")
    return bool(same)


async def _ask(
    system: System, launcher: Launcher, job: str, config: Mapping[str, Any], *, op: str | None = None
) -> dict[str, Any]:
    """Run a job that answers with a result row."""
    result_id = uuid4().hex
    await _run(
        launcher,
        job,
        {"ops": {op or job: {"config": {**config, "result_id": result_id}}}},
        {"result_id": result_id},
    )
    answer = await JobResults(system.store.storage).get(result_id)
    assert answer is not None, "a run that succeeded has left its result"
    result: dict[str, Any] = answer["result"]
    return result


async def _run(launcher: Launcher, job: str, run_config: dict[str, Any], tags: dict[str, str]) -> None:
    run_id = await launcher.submit(job, run_config, {**tags, "source": "demo"})
    if not await launcher.wait(run_id, JOB_TIMEOUT_S):
        raise UnavailableError(f"the job {job} failed (Dagster run {run_id})")


def _tick(good: bool) -> str:
    return "[green]✓[/green]" if good else "[red]✗[/red]"


def _farewell(settings: Settings, seconds: float) -> None:
    host = settings.bind_host
    console.print(
        pairs(
            f"Done in {seconds:.1f} s. `make up` serves",
            {
                "events": f"http://{host}:{settings.event_service_port}/docs",
                "replays": f"http://{host}:{settings.replay_service_port}/docs",
                "runs": f"http://{host}:{settings.dagster_port}/runs",
            },
        )
    )
