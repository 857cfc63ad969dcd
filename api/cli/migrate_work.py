"""One piece of work on a migration from the terminal: opened, journalled, shown, and stopped by Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import typer
from rich.console import Console

from api.cli.migrate_screen import progress_on
from api.cli.screen import console
from eventsourcing.bootstrap import System, open_system
from eventsourcing.config import Settings
from eventsourcing.errors import EventSourcingError
from eventsourcing.secrets import redact_url
from pipelines.migration.context import Progress
from pipelines.migration.errors import MigrationError, RunStoppedError, SourceError, UnknownRunError
from pipelines.migration.report_page import page
from pipelines.migration.run import Migration
from resources.connections import read_connections, target_url
from resources.journaling import Journaling
from resources.migration_journal import MigrationJournal, StateForbidsError, TargetHeldError
from resources.workspace import WorkspaceResource

Result = TypeVar("Result")
INTERRUPTED = 130
"""The exit code after Ctrl-C."""


@dataclass(frozen=True)
class Asked:
    """What the command line says of a migration."""

    mapping: Path
    source: str
    target: str
    migration_id: str

    def request(self) -> dict[str, Any]:
        """How the journal keeps it: no credential, and no name that another process could resolve."""
        names = {"mapping": self.mapping.name, "source": redact_url(self.source)}
        return {**names, "target": redact_url(self.target), "by": "terminal"}


@dataclass(frozen=True)
class Open:
    """The engine's run, and the row that tells of it."""

    engine: Migration
    journaling: Journaling

    @property
    def journal(self) -> MigrationJournal:
        """The rows of all migrations."""
        return self.journaling.journal

    async def report(self) -> dict[str, Any]:
        """Make the report anew, and keep it where services read it."""
        facts = await self.engine.report()
        await self.journal.keep_report(self.engine.migration_id, facts, page(facts))
        entities = facts["entities"]
        quarantined = sum(counts["quarantined"] for counts in entities.values())
        await self.journal.update(
            self.engine.migration_id, entities=entities, quarantined=quarantined, report=True
        )
        return facts


def run_work(asked: Asked, work: Callable[[Open], Awaitable[Result]], *, silent: bool = False) -> Result:
    """Do the work; Ctrl-C stops it at the next chunk, and leaves a run that can be resumed."""
    return asyncio.run(_run(asked, work, Console(stderr=True) if silent else console))


async def _run(asked: Asked, work: Callable[[Open], Awaitable[Result]], screen: Console) -> Result:
    async with _opened(asked, screen) as opened:
        heard = _listen(opened.engine)
        try:
            return await work(opened)
        except RunStoppedError as error:
            if not heard:
                raise
            console.print(f"\n{error}")
            raise typer.Exit(INTERRUPTED) from None


@asynccontextmanager
async def _opened(asked: Asked, screen: Console) -> AsyncIterator[Open]:
    workspace, settings = WorkspaceResource(), Settings.load()
    source, target = _source(settings, asked.source), _target(settings, asked.target)
    async with open_system(settings) as system:
        with progress_on(screen) as shown:

            def on_progress(progress: Progress) -> None:
                shown.show(progress)
                journaling.progress(progress)

            engine = Migration(
                asked.mapping,
                source_url=source,
                target_url=target,
                store=system.store,
                work_dir=workspace.folder(),
                migration_id=asked.migration_id,
                secret=workspace.secret(),
                on_progress=on_progress,
            )
            journal = MigrationJournal(system.store.storage)
            journaling = Journaling(journal, asked.migration_id, stop=engine.stop)
            await system.store.initialize()
            yield Open(engine, journaling)


@asynccontextmanager
async def journalled(
    opened: Open, asked: Asked, *, status: str, allowed: tuple[str, ...], is_new: bool = False
) -> AsyncIterator[dict[str, Any]]:
    """Say in the journal that the work goes on, and how it ended: what is yielded takes the fields that the
    row gets in the end, its `status` among them. A row is written for a migration that has none.

    Raises MigrationError while another process works on it, UnknownRunError when it `is_new` to everybody
    and the work is not one that begins it.
    """
    journal, migration_id = opened.journal, asked.migration_id
    row = await journal.get(migration_id)
    if row is None and not is_new and await opened.engine.status() is None:
        raise UnknownRunError(migration_id)
    ends: dict[str, Any] = {"status": "completed"}
    try:
        if row is None:
            await journal.create(migration_id, asked.request(), status=status)
        else:
            await journal.take(migration_id, allowed=allowed, status=status, request=asked.request())
    except StateForbidsError as error:
        advice = "; take a new id" if is_new and error.status == "rolled_back" else ""
        raise MigrationError(f"{error}{advice}") from None
    except TargetHeldError as error:
        raise MigrationError(str(error)) from None
    try:
        async with opened.journaling.during(status=status):
            yield ends
    except RunStoppedError:
        await opened.journaling.ended("cancelled")
        raise
    except EventSourcingError as error:
        in_target: str | None = None
        with suppress(MigrationError):  # a target that cannot be reached tells nothing
            in_target = await opened.engine.status()
        await opened.journaling.failed(redact_url(str(error)), in_target=in_target)
        raise
    await opened.journaling.ended(**ends)


@asynccontextmanager
async def open_journal() -> AsyncIterator[tuple[System, MigrationJournal]]:
    """The journal alone, for commands that need no connection of a migration."""
    async with open_system(Settings.load()) as system:
        await system.store.initialize()
        yield system, MigrationJournal(system.store.storage)


def _listen(engine: Migration) -> list[signal.Signals]:
    """Let the first Ctrl-C, or SIGTERM, stop the run; the second one ends the process. What was heard."""
    loop, heard = asyncio.get_running_loop(), list[signal.Signals]()

    def hear(number: signal.Signals) -> None:
        heard.append(number)
        console.print("\nStopping after the chunk that is under way; once more ends at once.")
        engine.stop()
        for each in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, hear, number)
    return heard


def _source(settings: Settings, source: str) -> str:
    """A URL, a file, or the name of a configured source. Raises SourceError for what is none of them."""
    if "://" in source:
        return source
    named = read_connections(settings).sources.get(source)
    if named is not None:
        return named
    path = Path(source)
    if not path.exists():
        raise SourceError(f"no source file {source!r}, and no configured source of this name")
    kind = "csv" if path.is_dir() or path.suffix.lower() == ".csv" else "sqlite"
    return f"{kind}:///{path.resolve()}"


def _target(settings: Settings, target: str) -> str:
    """A URL, a SQLite file, or the name of a configured target."""
    if "://" in target:
        return target
    if Path(target).is_file():
        return f"sqlite:///{Path(target).resolve()}"
    return target_url(settings, target)
