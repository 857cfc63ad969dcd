"""`esm consumers`: how far behind read models, consumer groups and the relay are."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer

from api.cli.screen import console, table
from eventsourcing import lag
from eventsourcing.bootstrap import System, open_system
from eventsourcing.canonical import encode
from eventsourcing.errors import UnavailableError

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
    columns = ("kind", "name", "state", "position", "events behind", "seconds behind", "in hand", "parked")
    shown = [
        (
            row["kind"],
            row["name"],
            row["state"],
            row["position"],
            row["events"],
            f"{row['seconds']:.1f}",
            row["in_hand"],
            row["parked"],
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
        return await lag.consumers(system.store.storage), await _on_kafka(system)


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
        {"kind": "kafka-group", "name": one.group, "topic": one.topic, "messages": one.messages}
        for one in found
    ]
