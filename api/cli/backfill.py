"""`esm events backfill`: append the events of a file at the dates when they happened."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer
from rich.progress import Progress

from api.cli.screen import console, pairs
from eventsourcing.bootstrap import open_system
from eventsourcing.errors import ConfigurationError

if TYPE_CHECKING:
    from eventsourcing.backfill import BackfillManifest


def backfill_file(
    file: Annotated[Path, typer.Argument(help="NDJSON, CSV or Parquet, by its ending.")],
    name: Annotated[
        str | None, typer.Option(help="What makes a second run the same; default: the file's.")
    ] = None,
    timezone: Annotated[
        str | None,
        typer.Option(help="Of dates that name none, as in Europe/Berlin; default: they are refused."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Append behind later events that an aggregate has already.")
    ] = False,
) -> None:
    """Append past events at their dates. A second run appends nothing; a wrong row stops all, before any."""
    try:
        zone = ZoneInfo(timezone) if timezone else None
    except (ZoneInfoNotFoundError, ValueError):
        raise ConfigurationError(f"{timezone} is no time zone") from None
    done = asyncio.run(_backfill(file, name or file.name, zone, merge=merge))
    span = f"{done.first:%Y-%m-%d} to {done.last:%Y-%m-%d}" if done.first and done.last else None
    facts = {
        "events": done.events,
        "appended": done.appended,
        "stored before": done.events - done.appended,
        "repeated rows": done.repeated,
        "dates": span,
    }
    console.print(pairs(f"Backfill {done.name}", facts))


async def _backfill(file: Path, name: str, zone: ZoneInfo | None, *, merge: bool) -> BackfillManifest:
    from eventsourcing.event_files import rows_of_file  # loads polars, which no other look at events needs

    async with open_system() as system:
        try:
            rows = rows_of_file(file)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("checking rows", total=None)

            def tell(stage: str, done: int, total: int) -> None:
                progress.update(task, description=stage, completed=done, total=total)

            return await system.store.backfill(rows, name=name, merge=merge, zone=zone, on_progress=tell)
