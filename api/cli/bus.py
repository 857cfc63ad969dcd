"""`esm bus`: whether Kafka holds what the store holds."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from api.cli.screen import console, table
from eventsourcing.bootstrap import open_system
from eventsourcing.errors import ConfigurationError
from eventsourcing.transport.kafka_audit import Audit, audit

app = typer.Typer(no_args_is_help=True, help="The way of events to Kafka.")


@app.callback()
def bus() -> None:
    """Keep `audit` a command of its own."""


@app.command("audit")
def run_audit(
    after: Annotated[int, typer.Option(help="Look at positions above this one.")] = 0,
    to: Annotated[int | None, typer.Option(help="Up to this position; default: the relay's.")] = None,
) -> None:
    """Compare the store with Kafka, topic by topic. Ends with 1 when anything is missing or foreign."""
    found = asyncio.run(_audit(after, to))
    rows = [
        (one.topic, one.stored, one.present, one.missing, one.doubled, one.foreign) for one in found.topics
    ]
    console.print(
        table(
            f"Positions {found.after + 1} to {found.to}",
            ("topic", "stored", "present", "missing", "doubled", "foreign"),
            rows,
        )
    )
    for one in found.topics:
        for kind in ("missing", "foreign"):
            positions = getattr(one, f"{kind}_positions")
            if positions:
                console.print(f"{one.topic}: {kind} {', '.join(map(str, positions))} …")
    if not found.complete:
        raise typer.Exit(1)


async def _audit(after: int, to: int | None) -> Audit:
    async with open_system() as system:
        config = system.settings.bus_config()
        if config.kafka_bootstrap_servers is None:
            raise ConfigurationError("KAFKA_BOOTSTRAP_SERVERS is not set: the bus runs over the store")
        return await audit(system.store.storage, config, after=after, to=to)
