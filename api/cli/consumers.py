"""`esm consumers`: how far behind read models, consumer groups and the relay are."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from api.cli.screen import console, table
from eventsourcing.bootstrap import open_system
from eventsourcing.canonical import encode
from eventsourcing.dead_letter_queue import DeadLetterQueue
from eventsourcing.lag import lags

app = typer.Typer()


@app.command()
def consumers(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show the lag of each read model, consumer group and relay, and what is parked."""
    rows = asyncio.run(_rows())
    if as_json:
        for row in rows:
            sys.stdout.write(encode(row).decode() + "\n")
        return
    columns = ("kind", "name", "position", "events behind", "seconds behind", "in hand", "parked", "circuit")
    shown = [
        (
            row["kind"],
            row["name"],
            row["position"],
            row["events"],
            f"{row['seconds']:.1f}",
            row["in_hand"],
            row["parked"],
            row["circuit"] or "",
        )
        for row in rows
    ]
    console.print(table("Consumers", columns, shown))


async def _rows() -> list[dict[str, Any]]:
    async with open_system() as system:
        parked = await DeadLetterQueue(system.store).groups()
        return [
            {**asdict(lag), "parked": parked.get(lag.name, {}).get("aggregates", 0)}
            for lag in await lags(system.store.storage)
        ]
