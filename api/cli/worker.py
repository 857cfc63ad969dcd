"""`esm worker`: keep the read models up to date and feed the handlers."""

from __future__ import annotations

import asyncio
import signal

import typer

from eventsourcing.bootstrap import open_system
from eventsourcing.config import Settings
from eventsourcing.logs import configure
from eventsourcing.worker import run_worker

app = typer.Typer()


@app.command()
def worker() -> None:
    """Run read models, relay and handlers until SIGTERM or Ctrl-C. ESM_WORKER_PORT has it serve its
    health and metrics, too."""
    settings = Settings.load()
    if settings.worker_port is not None:
        from api.server import serve  # without a port no web framework is loaded
        from api.worker import create_app

        serve("worker", create_app, lambda settings: settings.worker_port or 0)
        return
    configure(settings.log_level, settings.log_format, service="worker")
    asyncio.run(_run(settings))


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with open_system(settings) as system:
        await run_worker(system, stop)
