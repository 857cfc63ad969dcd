"""`esm demo`: a whole migration on this machine, killed in its middle, proven, undone and done again.

A legacy panel is generated with planted defects and moved into a new target by Dagster jobs, watched
through its events. What was planted is held against what was found, what the two systems' own rules
demand against what arrived.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from api.cli.demo_acts import Stage
from api.cli.demo_data import DemoData, prepare_demo
from api.cli.demo_watch import Watch
from api.cli.screen import console, pairs
from api.embedded_launcher import EmbeddedLauncher
from eventsourcing.bootstrap import open_system
from eventsourcing.config import Settings
from eventsourcing.storage.embedded import EmbeddedPostgres
from resources.dagster_home import apply_environment, prepare_dagster_home

app = typer.Typer()


@app.command()
def demo(
    users: Annotated[int, typer.Option(min=200, help="How many legacy users to generate.")] = 5000,
) -> None:
    """Run a whole migration here: plan, run, kill, resume, prove, undo, run again, replay."""
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
        ok, migration_id = asyncio.run(_demo(settings, data))
    finally:
        if embedded is not None and started:
            embedded.stop_if_idle()
    _farewell(settings, migration_id, time.monotonic() - began)
    if not ok:
        raise typer.Exit(1)


async def _demo(settings: Settings, data: DemoData) -> tuple[bool, str]:
    migration_id = datetime.now(UTC).strftime("demo-%Y%m%d-%H%M%S")
    again = f"{migration_id}-again"
    launcher = EmbeddedLauncher(settings)
    async with open_system(settings) as system:
        with console.status("Warming a worker process for Dagster's runs"):
            await launcher.start()
        stage = Stage(system, launcher, data)
        watch = Watch(system.store, migration_id, after=await system.store.horizon())
        try:
            console.rule("[bold]Plan")
            checks = [await stage.plan(migration_id)]
            console.rule("[bold]Run, and kill -9 in its middle")
            checks.append(await stage.run_and_kill(migration_id, watch))
            console.rule("[bold]Resume")
            await stage.resume(migration_id, watch)
            checks.append(await stage.show_statistics(migration_id))
            console.rule("[bold]Prove")
            checks += [
                await stage.show_quarantine(migration_id),
                await stage.show_traps(migration_id),
                await stage.verify(migration_id),
                await stage.validate(migration_id),
                await stage.snapshot(migration_id),
            ]
            console.rule("[bold]Undo, and run again")
            checks += [await stage.rollback(migration_id), await stage.run_again(again)]
            console.rule("[bold]Replay")
            checks.append(await stage.replay(again))
        finally:
            await launcher.stop()
    return all(checks), again


def _farewell(settings: Settings, migration_id: str, seconds: float) -> None:
    host = settings.bind_host
    service = f"http://{host}:{settings.event_service_port}"
    console.print(
        pairs(
            f"Done in {seconds:.1f} s. `make up` serves",
            {
                "report": f"{service}/migrations/{migration_id}/report.html",
                "events": f"{service}/docs",
                "replays": f"http://{host}:{settings.replay_service_port}/docs",
                "runs": f"http://{host}:{settings.dagster_port}/runs",
            },
        )
    )
