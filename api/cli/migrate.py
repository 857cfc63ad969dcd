"""`esm migrate`: plan, run, prove and undo a migration from the terminal, with the engine and no Dagster.

Exit codes: 0 done and right; 1 refused, failed, or the target differs; 2 a wrong option; 130 stopped.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.migrate_quarantine import app as quarantine_app
from api.cli.migrate_screen import (
    accounting,
    conflict_table,
    difference_table,
    quarantine_table,
    standing_table,
)
from api.cli.migrate_work import Asked, Open, journalled, open_journal, run_work
from api.cli.screen import console, pairs
from eventsourcing.canonical import encode
from eventsourcing.errors import NotFoundError
from pipelines.migration.errors import MigrationError
from pipelines.migration.report_page import verdict
from resources.migration_journal import ALIVE, RESUMABLE, StateForbidsError, after_rollback

app = typer.Typer(no_args_is_help=True, help="Migrations, run from here.")
app.add_typer(quarantine_app, name="quarantine")

CANCEL_S = 30.0
"""How long `cancel` waits for the run to stop."""

MappingFile = Annotated[Path, typer.Argument(help="The mapping file.")]
Source = Annotated[
    str, typer.Option("--source", "-s", help="A file, a SQLAlchemy URL, or the name of a configured source.")
]
Target = Annotated[
    str,
    typer.Option("--target", "-t", help="A SQLAlchemy URL, a SQLite file, or a configured name."),
]
Id = Annotated[str, typer.Option("--id", help="The migration.")]


@app.callback()
def migrations() -> None:
    """Migrations, run from here."""


@app.command("plan")
def plan_migration(
    mapping: MappingFile,
    source: Source,
    target: Target,
    as_json: Annotated[bool, typer.Option("--json", help="The whole plan as JSON.")] = False,
) -> None:
    """Say what a migration would do, record by record; nothing is written anywhere."""
    asked = Asked(mapping, source, target, "plan")
    facts = run_work(asked, lambda opened: opened.engine.preview(), silent=as_json)
    if as_json:
        typer.echo(encode(facts).decode())
    else:
        _show_plan(facts)
    if not facts["ok"]:
        raise typer.Exit(1)


@app.command("run")
def run_migration(
    mapping: MappingFile,
    source: Source,
    target: Target,
    migration_id: Annotated[
        str | None, typer.Option("--id", help="Its id; the id of an unfinished run resumes that run.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="The same as `plan`.")] = False,
) -> None:
    """Run a migration to its end, or resume one. A failure keeps what is done; Ctrl-C stops it in order."""
    if dry_run:
        plan_migration(mapping, source, target)
        return
    name = migration_id or datetime.now(UTC).strftime("migration-%Y%m%d-%H%M%S")
    _run(Asked(mapping, source, target, name))


@app.command("resume")
def resume_migration(mapping: MappingFile, source: Source, target: Target, migration_id: Id) -> None:
    """Go on with a migration that was interrupted, cancelled or failed."""
    asked = Asked(mapping, source, target, migration_id)
    asyncio.run(_require_row(migration_id))
    _run(asked)


@app.command("cancel")
def cancel_migration(migration_id: Id) -> None:
    """Stop a migration that runs anywhere; what is done stays done, and it can be resumed."""
    status = asyncio.run(_cancel(migration_id))
    console.print(f"Migration [bold]{migration_id}[/bold] is {status.replace('_', ' ')}")


@app.command("verify")
def verify_migration(mapping: MappingFile, source: Source, target: Target, migration_id: Id) -> None:
    """Compare the target with what was migrated; exit code 1 when they differ."""
    asked = Asked(mapping, source, target, migration_id)

    async def work(opened: Open) -> dict[str, Any]:
        outcome = await opened.engine.verify()
        if await opened.journal.get(migration_id) is not None:
            await opened.journal.update(migration_id, verified=outcome.facts["ok"])
            await opened.report()
        return outcome.facts

    facts = run_work(asked, work)
    if facts["differences"]:
        console.print(difference_table(facts["differences"]))
    console.print(f"Migration [bold]{migration_id}[/bold]: {_word(facts)}")
    if not facts["ok"]:
        raise typer.Exit(1)


@app.command("rollback")
def roll_back(
    mapping: MappingFile,
    source: Source,
    target: Target,
    migration_id: Annotated[str, typer.Option("--id", help="The migration to undo.")],
    reason: Annotated[str, typer.Option(help="Why; it stands in the event.")] = "asked for",
    to_stage: Annotated[
        str | None,
        typer.Option(help="Go back to after it: start, schema, extract, transform, validate."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Undo what others changed since, too.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be undone, and undo nothing.")
    ] = False,
) -> None:
    """Undo a migration row by row; rows that others changed since stay as they are and are listed.

    Exit code 1 when something stayed.
    """
    asked = Asked(mapping, source, target, migration_id)
    if dry_run:
        found = run_work(asked, lambda opened: opened.engine.rollback_preview())
        console.print(standing_table(found["tables"]))
        return

    async def work(opened: Open) -> dict[str, Any]:
        allowed = (*RESUMABLE, "completed", "rolled_back")
        async with journalled(opened, asked, status="rolling_back", allowed=allowed) as ends:
            outcome = await opened.engine.rollback(reason, to_stage=to_stage, force=force)
            if outcome.facts["to_stage"] is None:
                await opened.engine.verify()
                await opened.report()
            ends.update(status=after_rollback(outcome.facts), rollback=outcome.facts)
        return outcome.facts

    facts = run_work(asked, work)
    deleted = {f"deleted from {table}": count for table, count in facts["deleted"].items()}
    counts = {**deleted, "restored": facts["restored"], "left as they are": facts["conflicts"]}
    console.print(pairs("Rolled back", counts))
    if facts["conflicting"]:
        console.print(conflict_table(facts["conflicting"]))
    if facts["residual_diff"]:
        console.print("What stayed is taken back, too, by the same command with --force.")
        raise typer.Exit(1)


@app.command("report")
def report_migration(
    migration_id: Id,
    html: Annotated[Path | None, typer.Option(help="Write the page to this file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the facts to this file.")] = None,
) -> None:
    """Show the newest report of a migration, or write it to files; exit code 1 unless it is proven."""
    found = asyncio.run(_report(migration_id))
    facts = found["facts"]
    if html is not None:
        html.write_text(found["html"], "utf-8")
    if json is not None:
        json.write_bytes(encode(facts))
    word, colour = verdict(facts)
    console.print(accounting(facts["entities"]))
    if facts["quarantine"]:
        console.print(quarantine_table(facts["quarantine"]))
    console.print(f"Migration [bold]{migration_id}[/bold] is {facts['status'].replace('_', ' ')}: {word}")
    if colour == "bad":
        raise typer.Exit(1)


def _run(asked: Asked) -> None:
    console.print(f"Migration [bold]{asked.migration_id}[/bold]")

    async def work(opened: Open) -> dict[str, Any]:
        allowed = (*RESUMABLE, "completed")
        async with journalled(opened, asked, status="running", allowed=allowed, is_new=True):
            outcome = await opened.engine.run()
            await opened.report()
        return outcome.facts

    facts = run_work(asked, work)
    console.print(accounting(facts["statistics"]["entities"]))
    console.print(f"Completed in {facts['duration_seconds']:,.1f} s, verified.")


def _show_plan(facts: dict[str, Any]) -> None:
    if facts["entities"]:
        console.print(accounting(facts["entities"]))
    if facts["quarantine"]:
        console.print(quarantine_table(facts["quarantine"]))
    for name, samples in facts["samples"].items():
        for sample in samples[:1]:
            shown = {column: _plain(value) for column, value in sample.items()}
            console.print(pairs(f"The first of {name}, as it would arrive", shown))
    for warning in facts["warnings"]:
        console.print(f"[yellow]warning[/yellow] {warning}")
    for blocker in facts["blockers"]:
        console.print(f"[red]blocker[/red] {blocker}")
    console.print("Nothing stands in its way." if facts["ok"] else "It cannot run like this.")


def _plain(value: Any) -> str | None:
    """A value as it stands in a record: a key is no amount."""
    return None if value is None else str(value)


def _word(facts: dict[str, Any]) -> str:
    if "accounting" not in facts:
        return "taken back" if facts["ok"] else "not taken back whole"
    return "the target is what was migrated" if facts["ok"] else "the target differs"


async def _require_row(migration_id: str) -> None:
    async with open_journal() as (_, journal):
        row = await journal.get(migration_id)
    if row is None:
        raise NotFoundError("migration", migration_id)
    if row["status"] not in RESUMABLE:
        raise MigrationError(f"migration {migration_id!r} is {row['status']}; there is nothing to resume")


async def _cancel(migration_id: str) -> str:
    async with open_journal() as (_, journal):
        try:
            row = await journal.request_cancel(migration_id)
        except StateForbidsError as error:
            raise MigrationError(f"{error}; it cannot be cancelled") from None
        deadline = asyncio.get_running_loop().time() + CANCEL_S
        while row["status"] in ALIVE and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.2)
            row = await journal.get(migration_id) or row
    if row["status"] in ALIVE:
        raise MigrationError(f"{migration_id!r} was told to stop and has not yet")
    return str(row["status"])


async def _report(migration_id: str) -> dict[str, Any]:
    async with open_journal() as (_, journal):
        found = await journal.report(migration_id)
    if found is None:
        raise NotFoundError("report of migration", migration_id)
    return found
