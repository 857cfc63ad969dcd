"""Migration: one run of a mapping, a method for each stage, resumable under its migration_id.

A run's state is durable: its identity, lease, loaded chunks and undo rows in the target's `mig_*` tables,
its stages and staged files in `work_dir`. So every method may be called on an object of its own, in
another process, any number of times: a stage that is done announces its event again, which the store
ignores, and returns the outcome it had. After `kill -9`, `run()` under the same migration_id goes on at
the first stage, or loaded chunk, that is not done.

    running ──> completed ──> rolling_back ──> rolled_back
       │            └──(retry of its quarantine)──> running
       └──> failed, cancelled ──(start again)──> running
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from collections.abc import Mapping as Dict
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipelines.migration.announce import EventLog
from pipelines.migration.complete import complete
from pipelines.migration.context import Progress, Reporter, RunContext
from pipelines.migration.errors import MigrationError, RunStoppedError, SourceError
from pipelines.migration.extract import extract
from pipelines.migration.load import load
from pipelines.migration.manifest import StageOutcome
from pipelines.migration.mapping import Mapping
from pipelines.migration.quarantine import quarantined_events, refused_events, released_events
from pipelines.migration.report import report_facts, write_report
from pipelines.migration.rollback import rollback
from pipelines.migration.schemacheck import check_schema, refuse_blockers
from pipelines.migration.session import Session
from pipelines.migration.source import Source
from pipelines.migration.told import Told
from pipelines.migration.transform import transform
from pipelines.migration.validate import refuse_excess, validate
from pipelines.migration.verify import standing_rows, verify

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
        self._session = Session(
            mapping=mapping,
            source_url=source_url,
            target_url=target_url,
            store=store,
            folder=work_dir / quote(migration_id, safe=""),
            migration_id=migration_id,
            secret=secret,
            metadata=dict(metadata or {}),
            reporter=Reporter(on_progress),
        )

    async def preview(self) -> dict[str, Any]:
        """Find out what a run would do, and write nothing anywhere: counts, samples, blockers, warnings.

        Raises MappingError, SourceError and TargetError as `start` does.
        """
        return await asyncio.to_thread(self._session.preview)

    async def run(self) -> StageOutcome:
        """Do all stages, or those that are left, and return the outcome of the last.

        A MigrationError is announced by `fail` and raised; whatever else stops it is a crash, which
        announces nothing and leaves the run to be resumed. So does `stop`: RunStoppedError.
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
        except RunStoppedError:
            await self.pause()
            raise
        except MigrationError as error:
            await self.fail(error)
            raise

    def stop(self) -> None:
        """Ask the run to stop at its next chunk, from any thread; it raises RunStoppedError there."""
        self._session.reporter.stop.set()

    async def pause(self) -> None:
        """Let go of the target after a stop; nothing is announced, for nothing happened to any record."""
        await asyncio.to_thread(self._session.pause)

    async def retry(self) -> StageOutcome:
        """Run what is in quarantine again, under the next attempt and the mapping as it is now.

        The run must be completed; a retry that was interrupted goes on, here or by `run`. Raises
        MigrationError when nothing is in quarantine, and whatever `run` raises.
        """
        await asyncio.to_thread(self._session.prepare_retry)
        return await self.run()

    async def start(self) -> StageOutcome:
        """Check everything that can be checked without writing, take hold of the target, and begin.

        Raises MappingError, SourceError, TargetError, TargetNotEmptyError or TargetBusyError for a new
        run, and then nothing was written anywhere. Starting again resumes.
        """
        await asyncio.to_thread(self._session.prepare)
        async with self._open() as run:
            outcome = await asyncio.to_thread(self._session.begin, run)
            await run.announcer.stage(outcome)
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
            return await asyncio.to_thread(extract, run, self._session.open_source())

        async with self._stage("extract", work) as (run, outcome):
            await run.announcer.stage(outcome)
            return outcome

    async def transform(self) -> StageOutcome:
        """Bring the staged rows into the target's form."""

        async def work(run: RunContext) -> StageOutcome:
            return await asyncio.to_thread(transform, run)

        async with self._stage("transform", work) as (run, outcome):
            await run.announcer.append(run.announcer.conversions(outcome))
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
            for entity in run.plan.entities.values():
                for events in (refused_events, released_events):
                    told = await asyncio.to_thread(lambda: [*events(run, entity, outcome.at)])  # noqa: B023 - awaited at once
                    await run.announcer.append(told)
            await run.announcer.stage(outcome)
            return outcome

    async def verify(self) -> StageOutcome:
        """Compare the target with what was migrated, anew each time; differences are facts, not errors."""
        async with self._open(undoing=True) as run:
            told = Told(self._session.store, asyncio.get_running_loop())
            return await asyncio.to_thread(verify, run, self._source_if_there(), told)

    async def status(self) -> str | None:
        """How the run stands in the target (see `worktables.RunRow`); None when it holds no such run.

        Raises TargetError.
        """
        return await asyncio.to_thread(self._session.status)

    async def rollback_preview(self) -> dict[str, Any]:
        """What a rollback would take back now, table by table, and what others changed; nothing is undone."""
        async with self._open(undoing=True) as run:
            return await asyncio.to_thread(standing_rows, run)

    async def report(self) -> dict[str, Any]:
        """What the run came to so far, as plain JSON values; written as `report.json` and `report.html`
        into its folder, too. Raises UnknownRunError for a run that never began."""
        async with self._open(undoing=True) as run:
            facts = await asyncio.to_thread(report_facts, run)
            await asyncio.to_thread(write_report, self._session.folder, facts)
            return facts

    async def complete(self) -> StageOutcome:
        """End the run well and remove its staged files.

        Raises VerificationError unless the last verification found the target right.
        """

        async def work(run: RunContext) -> StageOutcome:
            run.require("complete", needs="verify")
            return await asyncio.to_thread(complete, run)

        async with self._stage("complete", work) as (run, outcome):
            await run.announcer.stage(outcome)
            await asyncio.to_thread(run.set_status, "completed")
            await asyncio.to_thread(run.remove_staged)
            return outcome

    async def fail(self, error: Exception) -> None:
        """Announce that the run failed and let go of the target; nothing is undone.

        A run that never began, or is over, announces nothing.
        """
        async with self._session.failing() as announcer:
            if announcer is not None:
                await announcer.failed(error)

    async def rollback(
        self, reason: str, *, to_stage: str | None = None, force: bool = False
    ) -> StageOutcome:
        """Undo what the run wrote, or go on undoing it; facts say deleted, restored, conflicts and
        residual_diff, the records left behind.

        Records that others changed since are left alone and reported, unless `force`. With `to_stage`
        (start, schema, extract, transform, validate) the run can go on after that stage, when nothing
        was left behind. Raises MigrationError when there is nothing to undo any more, StagedDataError
        when the stage's files are gone.
        """
        async with self._open(undoing=True) as run:
            return await rollback(run, reason=reason, to_stage=to_stage, force=force)

    def _source_if_there(self) -> Source | None:
        try:
            return self._session.open_source()
        except SourceError:
            return None

    @asynccontextmanager
    async def _stage(self, name: str, work: Work) -> AsyncIterator[tuple[RunContext, StageOutcome]]:
        """The run and the outcome of a stage, which is worked out unless it is done."""
        async with self._open() as run:
            yield run, run.outcome(name) or await work(run)

    @asynccontextmanager
    async def _open(self, *, undoing: bool = False) -> AsyncIterator[RunContext]:
        run = await asyncio.to_thread(self._session.context, undoing=undoing)
        try:
            yield run
        finally:
            run.target.close()
