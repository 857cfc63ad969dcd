"""`esm migrate quarantine`: look at what was set aside, take it out as a file, run it again after a fix."""

from __future__ import annotations

import asyncio
import csv
import io
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.migrate_screen import accounting
from api.cli.migrate_work import Asked, Open, journalled, open_journal, run_work
from api.cli.screen import console, table
from eventsourcing.canonical import encode
from eventsourcing.quarantine import FIELDS, quarantined
from eventsourcing.store import EventStore
from eventsourcing.wording import counted
from pipelines.migration.errors import MigrationError

app = typer.Typer(no_args_is_help=True, help="What a migration set aside.")

_PAGE = 500
_SHOWN = 50
Id = Annotated[str, typer.Option("--id", help="The migration.")]


@app.command("list")
def list_quarantine(migration_id: Id) -> None:
    """Show the records that stand in quarantine: the first fifty, and how many there are."""
    rows, count = asyncio.run(_first(migration_id))
    columns = ("entity", "source_key", "attempt", "stage", "rule", "column", "message")
    console.print(table("Quarantine", columns, [[row[name] for name in columns] for row in rows]))
    console.print(f"In quarantine: {counted(count, 'record')}.")


@app.command("export")
def export_quarantine(
    migration_id: Id,
    file: Annotated[
        Path | None, typer.Argument(help="A file ending in .csv or .jsonl; without it JSON lines on stdout.")
    ] = None,
) -> None:
    """Write every record in quarantine, as CSV or as JSON lines; no value of a record is in it."""
    if file is not None and file.suffix not in (".csv", ".jsonl"):
        raise MigrationError(f"{file.name!r} ends in neither .csv nor .jsonl")
    count = asyncio.run(_export(migration_id, file))
    if file is not None:
        console.print(f"{counted(count, 'record')} in {file}")


@app.command("retry")
def retry_quarantine(
    mapping: Annotated[Path, typer.Argument(help="The mapping file, mended.")],
    source: Annotated[str, typer.Option("--source", "-s")],
    target: Annotated[str, typer.Option("--target", "-t")],
    migration_id: Id,
) -> None:
    """Run only the quarantined records again, under the next attempt and the mapping as it is now."""
    asked = Asked(mapping, source, target, migration_id)

    async def work(opened: Open) -> dict[str, Any]:
        async with journalled(opened, asked, status="running", allowed=("completed",)):
            outcome = await opened.engine.retry()
            await opened.report()
        return outcome.facts

    facts = run_work(asked, work)
    console.print(accounting(facts["statistics"]["entities"]))


async def _rows(store: EventStore, migration_id: str) -> AsyncIterator[dict[str, Any]]:
    after = None
    while True:
        page = await quarantined(store, migration_id, after=after, limit=_PAGE)
        for row in page.rows:
            yield row
        if page.after is None:
            return
        after = page.after


async def _first(migration_id: str) -> tuple[list[dict[str, Any]], int]:
    shown, count = list[dict[str, Any]](), 0
    async with open_journal() as (system, _):
        async for row in _rows(system.store, migration_id):
            count += 1
            if count <= _SHOWN:
                shown.append(row)
    return shown, count


async def _export(migration_id: str, file: Path | None) -> int:
    count = 0
    async with open_journal() as (system, _):
        rows = _rows(system.store, migration_id)
        first = await anext(rows, None)  # an unknown migration is refused before a file is made
        with file.open("w", encoding="utf-8", newline="") if file else _stdout() as out:
            as_csv = file is not None and file.suffix == ".csv"
            writer = csv.writer(out)
            if as_csv:
                writer.writerow(FIELDS)
            while first is not None:
                if as_csv:
                    writer.writerow([_cell(first[name]) for name in FIELDS])
                else:
                    out.write(encode(first).decode() + "\n")
                count, first = count + 1, await anext(rows, None)
    return count


def _stdout() -> io.TextIOBase:
    return open(sys.stdout.fileno(), "w", encoding="utf-8", closefd=False)


def _cell(value: Any) -> str:
    """Text for a spreadsheet: a list as JSON, and nothing that a spreadsheet would execute."""
    text = encode(value).decode() if isinstance(value, list | dict) else "" if value is None else str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text
