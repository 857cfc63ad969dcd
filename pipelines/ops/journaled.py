"""What every op of a migration does around its call of the engine: resolve names, keep the journal, obey."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import dagster as dg

from eventsourcing.errors import EventSourcingError
from eventsourcing.query import EventQuery
from pipelines.config import MigrateConfig
from pipelines.migration.context import Progress
from pipelines.migration.errors import MigrationError, RunStoppedError
from pipelines.migration.report_page import page
from pipelines.migration.run import Migration
from pipelines.ops.reports import Metadata, report_metadata
from pipelines.watch import Watch
from resources.databases import DatabasesResource
from resources.eventing import EventingResource
from resources.journaling import Journaling
from resources.migration_journal import (
    ALIVE,
    RESUMABLE,
    MigrationJournal,
    StateForbidsError,
    TargetHeldError,
)
from resources.workspace import WorkspaceResource


@dataclass(frozen=True)
class Places:
    """The resources of an op."""

    eventing: EventingResource
    databases: DatabasesResource
    workspace: WorkspaceResource


class JournaledMigration:
    """One migration in one op: the engine's run, and the row that tells of it."""

    def __init__(
        self, context: dg.OpExecutionContext, migration_id: str, request: Mapping[str, Any], places: Places
    ) -> None:
        self.context, self.migration_id = context, migration_id
        self._places, self._watch = places, Watch(context)
        self.journal = MigrationJournal(places.eventing.store.storage)
        self.engine = self._engine(request)
        self.journaling = Journaling(self.journal, migration_id, stop=self.engine.stop)

    async def take(
        self, request: Mapping[str, Any], *, status: str = "running", after: tuple[str, ...] = ("completed",)
    ) -> dict[str, Any]:
        """Become the run that works on the migration; one that nobody wrote a row for gets one.

        Fails the op while another run works on it, or on its target. `after` are the states, beside
        those that can be resumed, that the work may follow. Returns the row.
        """
        row = await self.journal.get(self.migration_id)
        try:
            if row is None:
                await self.journal.create(self.migration_id, request, status=status)
            else:
                mine = row["status"] == "queued" or row.get("dagster_run_id") == self.context.run_id
                allowed = (*RESUMABLE, *after, *(ALIVE if mine else ()))
                await self.journal.take(self.migration_id, allowed=allowed, status=status, request=request)
        except (StateForbidsError, TargetHeldError) as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        return await self.journal.update(self.migration_id, dagster_run_id=self.context.run_id)

    @asynccontextmanager
    async def working(self, status: str | None = None) -> AsyncIterator[None]:
        """Beat while the work goes on. A stop that somebody asked for leaves the run resumable."""
        fields: dict[str, Any] = {"dagster_run_id": self.context.run_id}
        if status is not None:
            fields |= {"status": status, "failure": None}
        try:
            async with self.journaling.during(**fields):
                yield
        except RunStoppedError as error:
            await self.engine.pause()
            await self.journaling.ended("cancelled")
            raise dg.Failure("cancelled", allow_retries=False) from error

    async def ended_by(self, error: EventSourcingError) -> None:
        """The work failed. A run that was over before is over still, whatever was refused."""
        in_target: str | None = None
        with suppress(MigrationError):  # a target that cannot be reached tells nothing
            in_target = await self.engine.status()
        await self.journaling.failed(str(error), in_target=in_target)

    async def link(self) -> None:
        """Tag the run with the migration that it runs; its events carry the run's id."""
        tags = {"migration_id": self.migration_id}
        async for event in self._places.eventing.store.read(
            EventQuery(aggregate_id=self.migration_id, limit=1)
        ):
            tags["correlation_id"] = str(event.correlation_id or event.event_id)
        self.context.instance.add_run_tags(self.context.run_id, tags)

    async def report(self) -> Metadata:
        """Make the report anew and keep it where services read it; what shows it beside the run."""
        facts = await self.engine.report()
        await self.journal.keep_report(self.migration_id, facts, page(facts))
        entities = facts["entities"]
        await self.journal.update(
            self.migration_id,
            entities=entities,
            quarantined=sum(counts["quarantined"] for counts in entities.values()),
            report=True,
        )
        settings = self._places.eventing.settings
        address = f"http://{settings.bind_host}:{settings.event_service_port}"
        return report_metadata(facts, address)

    def _engine(self, request: Mapping[str, Any]) -> Migration:
        """The engine's run with every name resolved. Raises NotFoundError for one that is not configured."""
        places = self._places
        return Migration(
            places.workspace.mapping(request["mapping"]),
            source_url=places.databases.source_url(request["source"]),
            target_url=places.databases.target_url(request["target"]),
            store=places.eventing.store,
            work_dir=places.workspace.folder(),
            migration_id=self.migration_id,
            secret=places.workspace.secret(),
            metadata={"dagster_run_id": self.context.run_id},
            on_progress=self._on_progress,
        )

    def _on_progress(self, progress: Progress) -> None:
        if self._watch.stopping():
            self.engine.stop()
        said = f"{progress.stage} {progress.entity}: {progress.done} of {progress.total}"
        self._watch.say(f"{progress.stage} waits: {progress.waits}" if progress.waits else said)
        self.journaling.progress(progress)


async def open_migration(
    context: dg.OpExecutionContext, migration_id: str, request: Mapping[str, Any], places: Places
) -> JournaledMigration:
    """The migration with every name resolved. A name that is not configured fails the op, and the
    migration that waits for this run."""
    try:
        return JournaledMigration(context, migration_id, request, places)
    except EventSourcingError as error:
        journal = MigrationJournal(places.eventing.store.storage)
        row = await journal.get(migration_id)
        if row is not None and row["status"] == "queued":
            await journal.update(migration_id, status="failed", failure=str(error))
        raise dg.Failure(str(error), allow_retries=False) from error


def request_of(config: MigrateConfig) -> dict[str, Any]:
    """What a migration was asked to be, as its row keeps it."""
    return {name: getattr(config, name) for name in ("mapping", "source", "target", "on_failure")}
