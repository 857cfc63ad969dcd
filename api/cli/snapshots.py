"""`esm snapshots`: take, list and verify the stored states of aggregates."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

import typer

from api.cli.screen import console, pairs, table
from eventsourcing.bootstrap import open_system
from eventsourcing.canonical import encode
from eventsourcing.plugins import replay_handlers
from eventsourcing.replay import EventReplay
from eventsourcing.snapshots import list_snapshots, verify_snapshot
from eventsourcing.store import EventStore

app = typer.Typer(no_args_is_help=True, help="Snapshots of aggregates.")

Aggregate = Annotated[str, typer.Argument(help="The aggregate_id.")]
Version = Annotated[int | None, typer.Option("--version", "-v", min=1)]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
T = TypeVar("T")


@app.command("create")
def create(aggregate: Aggregate, version: Version = None) -> None:
    """Store the state of an aggregate at a version, or at its last one, and print the snapshot."""

    async def work(store: EventStore) -> dict[str, Any]:
        replay = EventReplay(store)
        for handler in replay_handlers():
            replay.add_handler(handler)
        return await replay.create_snapshot(aggregate, version)

    _line(asyncio.run(_over_store(work)))


@app.command("list")
def show_list(
    aggregate: Annotated[str | None, typer.Argument(help="Only of this aggregate.")] = None,
    after: Annotated[tuple[str, int] | None, typer.Option(help="Behind this aggregate and version.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1)] = 50,
    as_json: AsJson = False,
) -> None:
    """Show stored snapshots; a stale one was made by another version of its fold."""
    rows = asyncio.run(
        _over_store(lambda store: list_snapshots(store.storage, aggregate, after=after, limit=limit))
    )
    if as_json:
        for row in rows:
            _line(row)
        return
    shown = [
        (
            row["aggregate_id"],
            row["version"],
            row["position"],
            row["snapshot_time"],
            row["state_hash"][:12],
            "stale" if row["is_stale"] else "",
        )
        for row in rows
    ]
    console.print(table("Snapshots", ("aggregate", "version", "position", "taken", "hash", ""), shown))


@app.command("verify")
def verify(aggregate: Aggregate, version: Version = None, as_json: AsJson = False) -> None:
    """Hold a snapshot against a fresh fold of its events; exit code 1 when it is not the same."""
    verdict = asyncio.run(_over_store(lambda store: verify_snapshot(store, aggregate, version)))
    if as_json:
        _line(asdict(verdict))
    else:
        console.print(pairs("Snapshot", asdict(verdict)))
    if not verdict.is_valid:
        raise typer.Exit(1)


def _line(row: dict[str, Any]) -> None:
    sys.stdout.write(encode(row).decode() + "\n")


async def _over_store(work: Callable[[EventStore], Awaitable[T]]) -> T:
    async with open_system() as system:
        return await work(system.store)
