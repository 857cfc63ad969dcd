"""Migration: one run of a mapping, a method for each stage, resumable under its migration_id.

A run's state is durable: its identity, lease, loaded chunks and undo rows in the target's `mig_*` tables,
its stages and staged files in `work_dir`. So every method may be called on an object of its own, in
another process, any number of times: a stage that is done announces its event again, which the store
ignores, and returns the outcome it had. After `kill -9`, `run()` under the same migration_id goes on at
the first stage, or loaded chunk, that is not done.

    running ──> completed ──> rolling_back ──> rolled_back
       └──> failed ──(start again)──> running
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from collections.abc import Mapping as Dict
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from eventsourcing.catalogue import DatetimeConvertedEvent, MigrationFailedEvent, UUIDTransformedEvent
from eventsourcing.errors import EventSourcingError
from eventsourcing.events import BaseEvent
from pipelines.migration.announce import Announcer, EventLog
from pipelines.migration.chunks import remove_stage
from pipelines.migration.context import Progress, Reporter, RunContext
from pipelines.migration.errors import MigrationError, StagedDataError, StageOrderError, VerificationError
from pipelines.migration.extract import extract
from pipelines.migration.load import load, refuse_filled_tables
from pipelines.migration.manifest import Manifest, StageOutcome
from pipelines.migration.mapping import Mapping, load_mapping
from pipelines.migration.masking import Masker
from pipelines.migration.plan import compile_plan, tables_of
from pipelines.migration.records import quarantined_events
from pipelines.migration.rollback import rollback
from pipelines.migration.schemacheck import check_schema, refuse_blockers
from pipelines.migration.source import open_source
from pipelines.migration.target import Target, open_target
from pipelines.migration.transform import transform
from pipelines.migration.validate import refuse_excess, validate
from pipelines.migration.verify import verify
from pipelines.migration.worktables import (
    RunRow,
    create_work_tables,
    find_run,
    insert_run,
    refuse_other_holder,
    update_run,
)

Work = Callable[[RunContext], Awaitable[StageOutcome]]
"""What a stage does when it is not done yet."""


class Migration:
    """One run. Errors of every method: MigrationError and what the event store raises.

    `secret` keys the hashes that stand for secret values in events. `metadata` goes onto every event of
    the run; of a resumed run's metadata only the reserved keys (`dagster_run_id` …) count. `on_progress`
    is called from worker threads.
    """

    def __init__(
        self,
        mapping: Mapping | Path,
        *,
        source_url: str,
        target_url: str,
        store: EventLog,
        work_dir: Path,
        migration_id: str,
        secret: str,
        metadata: Dict[str, Any] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.migration_id = migration_id
        self._mapping = mapping
        self._source_url, self._target_url = source_url, target_url
        self._store = store
        self._folder = work_dir / quote(migration_id, safe="")
        self._secret = secret
        self._metadata = dict(metadata or {})
        self._reporter = Reporter(on_progress)

    async def run(self) -> StageOutcome:
        """Do all stages, or those that are left, and return the outcome of the last.

        A MigrationError is announced by `fail` and raised; whatever else stops it is a crash, which
        announces nothing and leaves the run to be resumed.
        """
        try:
            await self.start()
            await self.check_schema()
            await self.extract()
            await self.transform()
            await self.validate()
            await self.load()
            await self.verify()
            return await self.complete()
        except MigrationError as error:
            await self.fail(error)
            raise

    async def start(self) -> StageOutcome:
        """Check everything that can be checked without writing, take hold of the target, and begin.

        Raises MappingError, SourceError, TargetError, TargetNotEmptyError or TargetBusyError for a new
        run, and then nothing was written anywhere. Starting again resumes.
        """
        target = open_target(self._target_url)
        try:
            await asyncio.to_thread(self._prepare, target)
        finally:
            target.close()
        async with self._open() as run:
            outcome = run.outcome("start")
            if outcome is None:
                facts = await asyncio.to_thread(self._start_facts, run)
                outcome = await asyncio.to_thread(run.finish, "start", facts)
            await run.announcer.stage(StageOutcome("start", run.row.started_at, outcome.facts))
            return outcome

    async def check_schema(self) -> StageOutcome:
        """Compare the schemas. Raises SchemaIncompatibleError after the event that says why."""

        async def work(run: RunContext) -> StageOutcome:
            run.require("schema", needs="start")
            return await asyncio.to_thread(check_schema, run)

        async with self._stage("schema", work) as (run, outcome):
            await run.announcer.stage(outcome)
            refuse_blockers(outcome)
            return outcome

    async def extract(self) -> StageOutcome:
        """Stage the whole source from one snapshot. Raises SourceError; a failed attempt begins anew."""

        async def work(run: RunContext) -> StageOutcome:
            run.require("extract", needs="schema")
            return await asyncio.to_thread(extract, run, open_source(self._source_url))

        async with self._stage("extract", work) as (run, outcome):
            await run.announcer.stage(outcome)
            return outcome

    async def transform(self) -> StageOutcome:
        """Bring the staged rows into the target's form."""

        async def work(run: RunContext) -> StageOutcome:
            return await asyncio.to_thread(transform, run)

        async with self._stage("transform", work) as (run, outcome):
            await run.announcer.append(_conversion_events(run, outcome))
            await run.announcer.stage(outcome)
            return outcome

    async def validate(self) -> StageOutcome:
        """Part valid records from broken ones. Raises ThresholdExceededError after their events."""

        async def work(run: RunContext) -> StageOutcome:
            return await asyncio.to_thread(validate, run)

        async with self._stage("validate", work) as (run, outcome):
            for name, entity in run.plan.entities.items():
                for chunk in run.staged("quarantine", name):
                    violations = await asyncio.to_thread(run.read, chunk)
                    await run.announcer.append(quarantined_events(run, entity, violations, outcome.at))
            await run.announcer.stage(outcome)
            refuse_excess(run, outcome)
            return outcome

    async def load(self) -> StageOutcome:
        """Write the valid records and their events, chunk by chunk. Raises TargetError, resumable or not."""
        async with self._stage("load", load) as (run, outcome):
            await run.announcer.stage(outcome)
            return outcome

    async def verify(self) -> StageOutcome:
        """Compare the target with what was migrated, anew each time; differences are facts, not errors."""
        async with self._open() as run:
            run.require("verify", needs="load")
            return await asyncio.to_thread(verify, run)

    async def complete(self) -> StageOutcome:
        """End the run well and remove its staged files.

        Raises VerificationError unless the last verification found the target right.
        """

        async def work(run: RunContext) -> StageOutcome:
            run.require("complete", needs="verify")
            return await asyncio.to_thread(run.finish, "complete", _statistics(run))

        async with self._stage("complete", work) as (run, outcome):
            await run.announcer.stage(outcome)
            await asyncio.to_thread(self._release, run, "completed")
            for stage in ("extract", "transform", "valid"):
                remove_stage(run.folder, stage)
            return outcome

    async def fail(self, error: Exception) -> None:
        """Announce that the run failed and let go of the target; nothing is undone.

        A run that never began, or is over, announces nothing.
        """
        target = open_target(self._target_url)
        try:
            row = await asyncio.to_thread(self._find, target)
            if row is None or row.status != "running":
                return
            announcer = Announcer(self._store, row, self._metadata)
            await announcer.append([_failed_event(announcer, row, error)])
            await asyncio.to_thread(_set_status, target, self.migration_id, "failed")
        finally:
            target.close()

    async def rollback(self, reason: str) -> StageOutcome:
        """Undo what the run wrote, or go on undoing it; facts say deleted, conflicts, residual_diff.

        Records that others changed since are left alone and reported. Raises MigrationError when there
        is nothing to undo any more.
        """
        async with self._open(for_stage=False) as run:
            return await rollback(run, reason=reason)

    def _prepare(self, target: Target) -> None:
        """Take the run up, or check and create it."""
        mapping = self._load_mapping()
        row = self._find(target)
        if row is not None:
            _refuse_unfit(row, mapping)
            if Manifest.load(self._folder) is None and row.stage != "start":
                raise StagedDataError(
                    f"the staged files of {self.migration_id!r} are not in this work directory"
                )
        source_names, target_names = tables_of(mapping)
        if row is None or Manifest.load(self._folder) is None:
            source_tables = open_source(self._source_url).tables(source_names)
            started_at = datetime.now(UTC).replace(microsecond=0)
            plan = compile_plan(mapping, source_tables, target.tables(target_names), started_at)
            with target.transaction() as transaction:
                transaction.lock()
                refuse_other_holder(transaction.connection, self.migration_id)
                if row is None:
                    refuse_filled_tables(transaction, plan)
                    create_work_tables(transaction.connection)
                    insert_run(transaction.connection, self._new_row(mapping, started_at))
            Manifest(self._folder, source_tables).save()
        elif row.status == "failed":
            with target.transaction() as transaction:
                transaction.lock()
                refuse_other_holder(transaction.connection, self.migration_id)
                update_run(transaction.connection, self.migration_id, status="running")

    def _new_row(self, mapping: Mapping, started_at: datetime) -> RunRow:
        row = RunRow(
            migration_id=self.migration_id,
            mapping_sha256=mapping.sha256,
            status="running",
            stage="start",
            started_at=started_at,
            correlation_id=_NO_UUID,
            metadata=self._metadata,
        )
        return replace(row, correlation_id=Announcer(self._store, row, {}).event_id("correlation"))

    def _load_mapping(self) -> Mapping:
        if isinstance(self._mapping, Path):
            self._mapping = load_mapping(self._mapping)
        return self._mapping

    def _find(self, target: Target) -> RunRow | None:
        with target.transaction() as transaction:
            return find_run(transaction.connection, self.migration_id)

    def _start_facts(self, run: RunContext) -> dict[str, Any]:
        return {
            "source_config": open_source(self._source_url).describe(),
            "target_config": run.target.describe(),
            "mapping_sha256": run.row.mapping_sha256,
            "mode": "run",
            "started_at": run.row.started_at.isoformat(),
        }

    def _release(self, run: RunContext, status: str) -> None:
        if run.row.status == "running":
            _set_status(run.target, self.migration_id, status)

    @asynccontextmanager
    async def _stage(self, name: str, work: Work) -> AsyncIterator[tuple[RunContext, StageOutcome]]:
        """The run and the outcome of a stage, which is worked out unless it is done."""
        async with self._open() as run:
            yield run, run.outcome(name) or await work(run)

    @asynccontextmanager
    async def _open(self, *, for_stage: bool = True) -> AsyncIterator[RunContext]:
        target = open_target(self._target_url)
        try:
            yield await asyncio.to_thread(self._context, target, for_stage)
        finally:
            target.close()

    def _context(self, target: Target, for_stage: bool) -> RunContext:
        """The state of the run as it is kept. A rollback needs no staged files."""
        mapping = self._load_mapping()
        row, manifest = self._find(target), Manifest.load(self._folder)
        if row is None:
            raise StageOrderError("a stage", needs="start")
        if row.mapping_sha256 != mapping.sha256:
            raise MigrationError(
                f"migration {self.migration_id!r} began under another mapping", stage="start"
            )
        if for_stage:
            _refuse_unfit(row, mapping)
        source_names, target_names = tables_of(mapping)
        if manifest is None:
            if for_stage:
                raise StagedDataError(
                    f"the staged files of {self.migration_id!r} are not in this work directory"
                )
            manifest = Manifest(self._folder, open_source(self._source_url).tables(source_names))
        plan = compile_plan(mapping, manifest.source_tables, target.tables(target_names), row.started_at)
        return RunContext(
            row=row,
            plan=plan,
            target=target,
            manifest=manifest,
            announcer=Announcer(self._store, row, self._metadata),
            masker=Masker(self._secret, self.migration_id),
            reporter=self._reporter,
        )
