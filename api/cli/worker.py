"""`esm worker`: keep the read models up to date and feed the handlers."""

from __future__ import annotations

import asyncio
import logging
import signal

import typer

from eventsourcing.bootstrap import open_system
from eventsourcing.config import Settings
from eventsourcing.worker import run_worker

app = typer.Typer()


@app.command()
def worker() -> None:
    """Run read models, relay and handlers until SIGTERM or Ctrl-C."""
    settings = Settings.load()
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(_run(settings))


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with open_system(settings) as system:
        await run_worker(system, stop)
