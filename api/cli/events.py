"""`esm events`: look at what is stored, and watch what comes."""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from api.cli import schemas
from api.cli.backfill import backfill_file
from api.cli.screen import console, table
from eventsourcing.asyncapi import asyncapi_document
from eventsourcing.bootstrap import open_system
from eventsourcing.canonical import encode
from eventsourcing.config import Settings
from eventsourcing.events import RecordedEvent
from eventsourcing.plugins import load_plugins
from eventsourcing.query import EventQuery
from eventsourcing.schemas import as_text

app = typer.Typer(no_args_is_help=True, help="Stored events.")
app.add_typer(schemas.app, name="schemas")
app.command("backfill")(backfill_file)

Aggregate = Annotated[str | None, typer.Option("--aggregate", "-a", help="Only this aggregate_id.")]
Types = Annotated[list[str] | None, typer.Option("--type", "-t", help="Only this type; may be repeated.")]
Correlation = Annotated[UUID | None, typer.Option("--correlation", "-c", help="Only this correlation_id.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


@app.command("list")
def list_events(
    aggregate: Aggregate = None,
    types: Types = None,
    correlation: Correlation = None,
    since: Annotated[datetime | None, typer.Option(help="Not before this moment (UTC).")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1)] = 20,
    oldest: Annotated[bool, typer.Option("--oldest", help="The first ones instead of the last.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the last events, oldest first."""
    query = _query(aggregate, types, correlation).where(
        from_timestamp=since, limit=limit, backwards=not oldest
    )
    found = asyncio.run(_read(query))
    _show(found if oldest else found[::-1], as_json=as_json)


@app.command("tail")
def tail_events(
    aggregate: Aggregate = None,
    types: Types = None,
    correlation: Correlation = None,
    after: Annotated[int | None, typer.Option(help="Begin behind this position; default: now.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show events as they arrive, until Ctrl-C."""
    asyncio.run(_tail(_query(aggregate, types, correlation), after, as_json=as_json))


@app.command("asyncapi")
def describe_topics(
    out: Annotated[Path | None, typer.Option(help="Write to this file; default: print.")] = None,
) -> None:
    """Describe Kafka's topics, keys, headers and payloads as an AsyncAPI 3.0 document."""
    settings = Settings.load()
    load_plugins(settings)
    brokers = [host.strip() for host in (settings.kafka_bootstrap_servers or "").split(",") if host.strip()]
    document = asyncapi_document(
        topic_prefix=settings.topic_prefix,
        brokers=brokers,
        partitions=settings.kafka_partitions if brokers else None,
    )
    text = as_text(document)
    if out is None:
        sys.stdout.write(text)
    else:
        out.write_text(text, "utf-8")


def _query(aggregate: str | None, types: list[str] | None, correlation: UUID | None) -> EventQuery:
    return EventQuery(aggregate_id=aggregate, event_types=tuple(types or ()), correlation_id=correlation)


async def _read(query: EventQuery) -> list[RecordedEvent]:
    async with open_system() as system:
        return [event async for event in system.store.read(query)]


async def _tail(query: EventQuery, after: int | None, *, as_json: bool) -> None:
    async with open_system() as system:
        begin = await system.store.horizon() if after is None else after
        async for piece in system.store.follow(query, after=begin):
            for event in piece.events:
                _show_line(event, as_json=as_json)


def _show(events: list[RecordedEvent], *, as_json: bool) -> None:
    if as_json:
        for event in events:
            _show_line(event, as_json=True)
        return
    rows = [
        (e.position, f"{e.timestamp:%Y-%m-%d %H:%M:%S}", e.event_type, e.aggregate_id, e.event_version)
        for e in events
    ]
    console.print(table("Events", ("position", "timestamp (UTC)", "type", "aggregate", "version"), rows))


def _show_line(event: RecordedEvent, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(encode(event.model_dump()).decode() + "\n")
        sys.stdout.flush()
        return
    line = f"{event.position:>10}  {event.timestamp:%H:%M:%S.%f}  {event.event_type:<30} {event.aggregate_id}"
    console.print(line, highlight=False, markup=False)
