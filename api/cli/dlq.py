"""`esm dlq`: see what consumer groups gave up, give it to them again, or discard it."""

from __future__ import annotations

import asyncio
import getpass
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from api.cli.screen import console, pairs, table
from eventsourcing.bootstrap import System, open_system
from eventsourcing.canonical import encode
from eventsourcing.dead_letter_queue import DeadLetterQueue
from eventsourcing.errors import ConfigurationError
from eventsourcing.redrive import ParkedSelection, RedriveResult
from eventsourcing.worker import group_handlers

app = typer.Typer(no_args_is_help=True, help="Dead letters and the aggregates parked behind them.")

Group = Annotated[str, typer.Argument(help="The consumer group.")]
Aggregate = Annotated[str, typer.Argument(help="The parked aggregate.")]
OnlyAggregate = Annotated[str | None, typer.Option("--aggregate", "-a", help="Only this aggregate_id.")]
OnlyType = Annotated[str | None, typer.Option("--type", "-t", help="Only failures on this event type.")]
OnlyCause = Annotated[str | None, typer.Option("--fingerprint", "-f", help="Only failures of this cause.")]
Why = Annotated[str, typer.Option("--why", help="The reason; it stands in the audit.")]
By = Annotated[str, typer.Option("--by", help="Who does it; it stands in the audit.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


@app.command("list")
def list_parked(
    group: Annotated[str | None, typer.Argument(help="One group; without it, a summary of all.")] = None,
    aggregate: OnlyAggregate = None,
    event_type: OnlyType = None,
    fingerprint: OnlyCause = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1)] = 50,
    as_json: AsJson = False,
) -> None:
    """Show the parked aggregates, and what failed in front of each."""
    if group is None:
        _show_groups(asyncio.run(_ask(lambda queue: queue.groups())), as_json=as_json)
        return
    selection = ParkedSelection(group, aggregate, event_type, fingerprint)
    _show_parked(asyncio.run(_ask(lambda queue: queue.preview(selection, limit=limit))), as_json=as_json)


@app.command("show")
def show_queue(
    group: Group,
    aggregate: Aggregate,
    payload: Annotated[bool, typer.Option("--payload", help="Show what the events hold.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1)] = 50,
    as_json: AsJson = False,
) -> None:
    """Show the queue of one parked aggregate and why it stopped. Payloads are hidden unless asked for."""
    rows = asyncio.run(_ask(lambda queue: queue.letters(group, aggregate, limit=limit)))
    if not payload:
        rows = [{**row, "event": _without_payload(row["event"])} for row in rows]
    if as_json:
        _lines(rows)
        return
    shown = [
        (
            row["status"],
            row["event"]["event_version"],
            row["event"]["event_type"],
            row["attempts"],
            row["redrives"],
            row.get("first_failed_at", ""),
            row.get("last_failed_at", ""),
            row["error"] or "",
        )
        for row in rows
    ]
    columns = ("status", "version", "type", "attempts", "re-driven", "first failure", "last failure", "error")
    console.print(table(f"{group}: {aggregate}", columns, shown))
    for row in rows:
        if row.get("stack"):
            console.print(row["stack"], highlight=False, markup=False)
        if payload:
            console.print_json(encode(row["event"]).decode())


@app.command("redrive")
def redrive(
    group: Group,
    why: Why = "",
    by: By = "",
    aggregate: OnlyAggregate = None,
    event_type: OnlyType = None,
    fingerprint: OnlyCause = None,
    everything: Annotated[bool, typer.Option("--all", help="Every parked aggregate of the group.")] = False,
    cap: Annotated[int | None, typer.Option(min=1, help="At most so many events.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Give parked aggregates to their handlers again, in order. Stop it at any time; another goes on."""
    if everything == any((aggregate, event_type, fingerprint)):
        raise ConfigurationError("say which aggregates: --aggregate, --type, --fingerprint, or --all")
    selection = ParkedSelection(group, aggregate, event_type, fingerprint)
    if dry_run:
        _show_parked(asyncio.run(_ask(lambda queue: queue.preview(selection))), as_json=as_json)
        return

    async def work(system: System) -> RedriveResult:
        queue = DeadLetterQueue(system.store, system.settings.bus_config())
        return await queue.redrive(selection, group_handlers(group), by=by or _user(), why=why, cap=cap)

    _finish("Re-driven", asyncio.run(_with_system(work)), as_json=as_json)


@app.command("discard")
def discard(
    group: Group,
    aggregate: Aggregate,
    why: Why = "",
    by: By = "",
    whole_queue: Annotated[bool, typer.Option("--whole-queue", help="All that waits too.")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Give up the failed event of a parked aggregate, or its whole queue; what is behind then flows."""
    if dry_run:
        show_queue(group, aggregate, as_json=as_json)
        return

    async def work(system: System) -> RedriveResult:
        queue = DeadLetterQueue(system.store, system.settings.bus_config())
        return await queue.discard(
            group, aggregate, group_handlers(group), by=by or _user(), why=why, whole_queue=whole_queue
        )

    _finish("Discarded; behind it", asyncio.run(_with_system(work)), as_json=as_json)


@app.command("actions")
def show_actions(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1)] = 20, as_json: AsJson = False
) -> None:
    """Show what operators did: who, when, what, why, and what came of it."""
    entries = asyncio.run(_ask(lambda queue: queue.actions(limit=limit)))
    if as_json:
        _lines(entries)
        return
    shown = [
        (entry["at"], entry["by"], entry["action"], encode(entry["what"]).decode(), entry["why"])
        for entry in entries
    ]
    console.print(table("Actions", ("at", "by", "action", "what", "why"), shown))


def _show_groups(groups: dict[str, dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        _lines([{"group": name, **row} for name, row in groups.items()])
        return
    shown = [
        (name, fingerprint, cause["aggregates"], cause["event_type"], cause["last_failed_at"], cause["error"])
        for name, row in groups.items()
        for fingerprint, cause in row["causes"].items()
    ]
    columns = ("group", "fingerprint", "aggregates", "failed on", "last failure", "error")
    console.print(table("Parked", columns, shown))


def _show_parked(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        _lines(rows)
        return
    names = ("aggregate_id", "letters", "event_type", "fingerprint", "redrives", "last_failed_at", "error")
    columns = ("aggregate", "events", "failed on", "fingerprint", "re-driven", "last failure", "error")
    console.print(table("Parked", columns, [tuple(row.get(name, "") for name in names) for row in rows]))


def _finish(title: str, result: RedriveResult, *, as_json: bool) -> None:
    """Show what came of it; a re-drive that left something behind fails the command."""
    if as_json:
        _lines([asdict(result)])
    else:
        console.print(
            pairs(title, {name: fact for name, fact in asdict(result).items() if fact not in (None, {})})
        )
    if result.failed or result.stopped:
        raise typer.Exit(1)


def _lines(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        sys.stdout.write(encode(row).decode() + "\n")


def _without_payload(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name not in ("data", "metadata")}


def _user() -> str:
    return getpass.getuser()


async def _ask(question: Any) -> Any:
    return await _with_system(lambda system: question(DeadLetterQueue(system.store)))


async def _with_system(work: Any) -> Any:
    async with open_system() as system:
        return await work(system)
