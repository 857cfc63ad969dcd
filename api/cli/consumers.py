"""`esm consumers`: how far behind read models, consumer groups and the relay are."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from api.cli.screen import console, table
from eventsourcing.bootstrap import System, open_system
from eventsourcing.canonical import encode
from eventsourcing.dead_letter_queue import DeadLetterQueue
from eventsourcing.errors import UnavailableError
from eventsourcing.lag import lags

app = typer.Typer()


@app.command()
def consumers(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show the lag of each read model, consumer group and relay, on Kafka by topic, and what is parked."""
    rows, on_kafka = asyncio.run(_rows())
    if as_json:
        for row in [*rows, *on_kafka]:
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
    if on_kafka:
        topics = [(row["name"], row["topic"], row["messages"]) for row in on_kafka]
        console.print(table("On Kafka", ("group", "topic", "messages behind"), topics))


async def _rows() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Who follows the store, and who follows Kafka by topic: nobody while no broker answers."""
    async with open_system() as system:
        parked = await DeadLetterQueue(system.store).groups()
        followers = [
            {**asdict(lag), "parked": parked.get(lag.name, {}).get("aggregates", 0)}
            for lag in await lags(system.store.storage)
        ]
        return followers, await _on_kafka(system)


async def _on_kafka(system: System) -> list[dict[str, Any]]:
    config = system.settings.bus_config()
    if config.kafka_bootstrap_servers is None:
        return []
    from eventsourcing.transport.kafka_lag import kafka_lags  # Kafka's client is loaded where there is Kafka

    try:
        found = await kafka_lags(config, system.store.storage)
    except UnavailableError as error:
        sys.stderr.write(f"{error}\n")
        return []
    return [
        {"kind": "kafka-group", "name": lag.group, "topic": lag.topic, "messages": lag.messages}
        for lag in found
    ]
