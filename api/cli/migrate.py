"""`esm migrate`: run a migration from the terminal, with the engine itself and no Dagster."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from api.cli.screen import console, pairs
from eventsourcing.bootstrap import open_system
from eventsourcing.config import Settings
from pipelines.migration.context import Progress as StageProgress
from pipelines.migration.errors import SourceError
from pipelines.migration.manifest import StageOutcome
from pipelines.migration.run import Migration
from resources.workspace import WorkspaceResource

app = typer.Typer(no_args_is_help=True, help="Migrations, run from here.")


@app.callback()
def migrations() -> None:
    """Migrations, run from here."""


class Bars:
    """A bar for each stage and entity, fed from whatever thread the engine works in."""

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("{task.fields[stage]:<10}"),
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._lock = threading.Lock()

    def show(self, progress: StageProgress) -> None:
        """Move the bar of a stage and entity."""
        with self._lock:
            key = (progress.stage, progress.entity)
            if key not in self._tasks:
                self._tasks[key] = self.progress.add_task(
                    progress.entity, stage=progress.stage, total=progress.total
                )
            self.progress.update(self._tasks[key], completed=progress.done, total=progress.total)


MappingFile = Annotated[Path, typer.Argument(help="The mapping file.")]
Source = Annotated[str, typer.Option("--source", "-s", help="A file or a SQLAlchemy URL.")]
Target = Annotated[str, typer.Option("--target", "-t", help="The SQLAlchemy URL of the target.")]


@app.command("run")
def run_migration(
    mapping: MappingFile,
    source: Source,
    target: Target,
    migration_id: Annotated[
        str | None, typer.Option("--id", help="Its id; the id of an unfinished run resumes that run.")
    ] = None,
) -> None:
    """Run a migration to its end, or resume one. A failure keeps what is done."""
    name = migration_id or datetime.now(UTC).strftime("migration-%Y%m%d-%H%M%S")
    outcome = asyncio.run(_work(Migration.run, mapping, source, target, name))
    facts = {name: fact for name, fact in outcome.facts.items() if isinstance(fact, int | float | str)}
    console.print(pairs("Completed", facts))


@app.command("rollback")
def roll_back(
    mapping: MappingFile,
    source: Source,
    target: Target,
    migration_id: Annotated[str, typer.Option("--id", help="The migration to undo.")],
    reason: Annotated[str, typer.Option(help="Why; it stands in the event.")] = "asked for",
) -> None:
    """Undo a migration row by row; rows that others changed since stay as they are and are reported."""
    outcome = asyncio.run(
        _work(lambda migration: migration.rollback(reason), mapping, source, target, migration_id)
    )
    deleted = {f"deleted from {table}": count for table, count in outcome.facts["deleted"].items()}
    console.print(pairs("Rolled back", {**deleted, "conflicts": outcome.facts["conflicts"]}))


def _url(source: str) -> str:
    """A path becomes a SQLite URL. Raises SourceError for a file that is not there."""
    if "://" in source:
        return source
    path = Path(source)
    if not path.is_file():
        raise SourceError(f"no source file {source!r}")
    return f"sqlite:///{path.resolve()}"


async def _work(
    work: Callable[[Migration], Awaitable[StageOutcome]],
    mapping: Path,
    source: str,
    target: str,
    migration_id: str,
) -> StageOutcome:
    """Open the migration, do the work with bars, close everything."""
    workspace, bars = WorkspaceResource(), Bars()
    source_url = _url(source)
    async with open_system(Settings.load()) as system:
        migration = Migration(
            mapping,
            source_url=source_url,
            target_url=target,
            store=system.store,
            work_dir=workspace.folder(),
            migration_id=migration_id,
            secret=workspace.secret(),
            on_progress=bars.show,
        )
        console.print(f"Migration [bold]{migration_id}[/bold]")
        with bars.progress:
            return await work(migration)
