"""Session: how a run is found, begun and taken up again, from what is kept of it.

The target's `mig_run` row says what the run is; the manifest in its folder says how far it came.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from pipelines.migration.announce import Announcer, EventLog
from pipelines.migration.attempts import current_folder, earlier_manifests, next_folder
from pipelines.migration.compile import compile_plan, tables_of
from pipelines.migration.context import Reporter, RunContext
from pipelines.migration.errors import (
    MigrationError,
    RunStoppedError,
    StagedDataError,
    TargetError,
    UnknownRunError,
)
from pipelines.migration.load import refuse_filled_tables, tables_written
from pipelines.migration.manifest import Manifest, StageOutcome
from pipelines.migration.mapping import Mapping
from pipelines.migration.mappingfile import load_mapping
from pipelines.migration.masking import Masker
from pipelines.migration.plan import Plan
from pipelines.migration.preview import preview, preview_folder, preview_run
from pipelines.migration.schema import Table
from pipelines.migration.source import Source, open_source
from pipelines.migration.target import Target, TargetTransaction, open_target
from pipelines.migration.worktables import (
    RunRow,
    create_work_tables,
    find_run,
    insert_run,
    refuse_other_holder,
    update_run,
)


@dataclass
class Session:
    """What the caller said of a run."""

    mapping: Mapping | Path
    source_url: str
    target_url: str
    store: EventLog
    folder: Path
    migration_id: str
    secret: str
    metadata: dict[str, Any]
    reporter: Reporter
    _kept_target: Target | None = field(default=None, init=False)
    _kept_plan: tuple[Any, Plan] | None = field(default=None, init=False)

    def prepare(self) -> None:
        """Create the run, or take it up: after it the run is there, and holds the target."""
        mapping = self._load_mapping()
        with self._target() as target:
            row, manifest = self._find(target), Manifest.load(self.current)
            if row is None:
                self._create(target, mapping)
                return
            _refuse_unfit(row, mapping)
            if manifest is None:
                if row.stage != "start":
                    raise self._no_files()
                manifest = self._reflect(target, mapping)
                manifest.save()
            if row.status in ("running", "failed", "cancelled"):
                _refuse_changed(manifest.target_tables, target.tables({*manifest.target_tables}))
                self._take_up(target)

    @property
    def current(self) -> Path:
        """The folder of the attempt that is under way, or was the last."""
        return current_folder(self.folder)

    def prepare_retry(self) -> None:
        """Begin the next attempt, or take up the one that is under way.

        Raises MigrationError unless the run is completed, for a run without files here, and when no
        record of it is in quarantine.
        """
        mapping = self._load_mapping()
        with self._target() as target:
            row, manifest = self._find(target), Manifest.load(self.current)
            if row is None:
                raise UnknownRunError(self.migration_id)
            if manifest is None:
                raise self._no_files()
            if row.status == "completed":
                folder = next_folder(self.folder, manifest, target, self.migration_id)
                manifest = self._reflect(target, mapping, folder)
                manifest.mapping_sha256 = mapping.sha256
                compile_plan(mapping, manifest.source_tables, manifest.target_tables, row.started_at)
                manifest.save()
            elif self.current == self.folder or row.status not in ("running", "failed", "cancelled"):
                raise MigrationError(f"migration {self.migration_id!r} is {row.status}, not completed")
            with target.transaction() as transaction:
                transaction.lock()
                refuse_other_holder(transaction.connection, self.migration_id)
                update_run(
                    transaction.connection,
                    self.migration_id,
                    status="running",
                    mapping_sha256=manifest.mapping_sha256,
                )

    def _create(self, target: Target, mapping: Mapping) -> None:
        """Check everything first, then write: the work tables, the run, its manifest."""
        manifest = self._reflect(target, mapping)
        started_at = datetime.now(UTC).replace(microsecond=0)
        plan = self._plan(mapping, manifest, started_at)
        with target.transaction() as transaction:
            transaction.lock()
            refuse_other_holder(transaction.connection, self.migration_id)
            refuse_filled_tables(transaction, plan)
            create_work_tables(transaction.connection)
            first_keys = _first_keys(transaction, plan)
            insert_run(transaction.connection, self._new_row(mapping, started_at, first_keys))
        manifest.save()

    def _take_up(self, target: Target) -> None:
        with target.transaction() as transaction:
            transaction.lock()
            refuse_other_holder(transaction.connection, self.migration_id)
            update_run(transaction.connection, self.migration_id, status="running")

    def preview(self) -> dict[str, Any]:
        """What a new run would do; nothing is written. See `preview.preview`."""
        mapping, now = self._load_mapping(), datetime.now(UTC)
        source = self.open_source()
        with self._target() as target, preview_folder(self.folder.parent) as folder:
            sources, targets = tables_of(mapping)
            here, there = source.tables(sources), target.tables(targets)
            plan = compile_plan(mapping, here, there, now)
            with target.transaction() as transaction:
                first_keys = _first_keys(transaction, plan)
            given = {
                "source_tables": here,
                "target_tables": there,
                "first_keys": first_keys,
                "plan": plan,
                "target": target,
                "store": self.store,
                "masker": Masker(self.secret, self.migration_id),
                "reporter": self.reporter,
                "now": now,
            }
            return preview(preview_run(Path(folder), given, mapping_sha256=mapping.sha256), source)

    def begin(self, run: RunContext) -> StageOutcome:
        """The outcome of the start, as it was or new: which databases, under which mapping."""
        begun = run.outcome("start")
        if begun is not None:
            return begun
        facts: dict[str, Any] = {
            "source_config": self.open_source().describe(),
            "target_config": run.target.describe(),
            "mapping_sha256": run.row.mapping_sha256,
            "mode": "run" if run.attempt == 1 else "retry",
            "started_at": run.row.started_at.isoformat(),
        }
        if run.attempt > 1:
            before = run.earlier[-1].outcomes["start"].facts["mapping_sha256"]
            return run.finish("start", {**facts, "previous_mapping_sha256": before})
        return run.finish("start", facts, at=run.row.started_at)

    def context(self, *, undoing: bool = False) -> RunContext:
        """The run as it is kept; the caller closes its target. To undo it, no staged file is needed.

        Raises UnknownRunError before `prepare`, MigrationError for another mapping or a run rolled back.
        """
        target = self._open_target()
        try:
            return self._context(target, undoing)
        except BaseException:
            target.close()
            raise

    def _context(self, target: Target, undoing: bool) -> RunContext:
        mapping = self._load_mapping()
        row, manifest = self._find(target), Manifest.load(self.current)
        earlier = earlier_manifests(self.folder)
        if row is None:
            raise UnknownRunError(self.migration_id)
        _refuse_unfit(row, mapping, undoing=undoing)
        if manifest is None:
            if not undoing:
                raise self._no_files()
            manifest = self._reflect(target, mapping)
        return RunContext(
            row=row,
            plan=self._plan(mapping, manifest, row.started_at),
            target=target,
            manifest=manifest,
            announcer=Announcer(self.store, row, self.metadata, manifest.outcomes, retry=len(earlier) + 1),
            masker=Masker(self.secret, self.migration_id),
            reporter=self.reporter,
            attempt=len(earlier) + 1,
            earlier=earlier,
        )

    @asynccontextmanager
    async def failing(self) -> AsyncIterator[Announcer | None]:
        """The announcer of a running run, which then is failed; None when there is none."""
        row = await asyncio.to_thread(self._running)
        if row is None:
            yield None
            return
        manifest, retry = Manifest.load(self.current), len(earlier_manifests(self.folder)) + 1
        yield Announcer(self.store, row, self.metadata, manifest.outcomes if manifest else None, retry=retry)
        await asyncio.to_thread(self._let_go)

    def pause(self) -> None:
        """Let go of the target, so that others may have it; a running run is `cancelled` until resumed."""
        row = self._running()
        with self._target() as target, target.transaction() as transaction:
            changes = {"status": "cancelled"} if row is not None else {}
            update_run(transaction.connection, self.migration_id, holds=False, **changes)

    def status(self) -> str | None:
        """How the run stands in the target; None when it holds no such run. Raises TargetError."""
        with self._target() as target:
            row = self._find(target)
        return None if row is None else row.status

    def _running(self) -> RunRow | None:
        try:
            with self._target() as target:
                row = self._find(target)
        except MigrationError:
            return None  # a target that cannot be reached knows of no run that could fail
        return row if row is not None and row.status == "running" else None

    def _let_go(self) -> None:
        with self._target() as target, target.transaction() as transaction:
            update_run(transaction.connection, self.migration_id, holds=False, status="failed")

    def _new_row(self, mapping: Mapping, started_at: datetime, first_keys: dict[str, int]) -> RunRow:
        row = RunRow(
            migration_id=self.migration_id,
            mapping_sha256=mapping.sha256,
            status="running",
            stage="start",
            started_at=started_at,
            correlation_id=UUID(int=0),
            metadata=self.metadata,
            first_keys=first_keys,
        )
        return replace(row, correlation_id=Announcer(self.store, row, {}).event_id("correlation"))

    def _load_mapping(self) -> Mapping:
        if isinstance(self.mapping, Path):
            self.mapping = load_mapping(self.mapping)
        return self.mapping

    def _reflect(self, target: Target, mapping: Mapping, folder: Path | None = None) -> Manifest:
        """The manifest of a run that has done nothing yet: the tables as they are now."""
        sources, targets = tables_of(mapping)
        return Manifest(folder or self.folder, self.open_source().tables(sources), target.tables(targets))

    def _plan(self, mapping: Mapping, manifest: Manifest, now: datetime) -> Plan:
        """The compiled plan, made once for the same tables and moment."""
        made_of = (manifest.source_tables, manifest.target_tables, now)
        if self._kept_plan is None or self._kept_plan[0] != made_of:
            self._kept_plan = (made_of, compile_plan(mapping, *made_of))
        return self._kept_plan[1]

    def _open_target(self) -> Target:
        """The target: after a `close` it connects anew, and it keeps its compiled statements."""
        if self._kept_target is None:
            self._kept_target = open_target(
                self.target_url, migration_id=self.migration_id, on_wait=self._wait
            )
        return self._kept_target

    def open_source(self) -> Source:
        """The source. Raises SourceError."""
        return open_source(self.source_url, on_wait=self._wait)

    def _wait(self, waits: str) -> None:
        """Report what is waited for. Raises RunStoppedError when somebody asked the run to stop."""
        if self.reporter.stop.is_set():
            raise RunStoppedError(self.migration_id)
        self.reporter.wait(waits)

    def _find(self, target: Target) -> RunRow | None:
        with target.transaction() as transaction:
            return find_run(transaction.connection, self.migration_id)

    def _no_files(self) -> StagedDataError:
        return StagedDataError(f"the staged files of {self.migration_id!r} are not in this work directory")

    @contextmanager
    def _target(self) -> Iterator[Target]:
        target = self._open_target()
        try:
            yield target
        finally:
            target.close()


def _first_keys(transaction: TargetTransaction, plan: Plan) -> dict[str, int]:
    """The highest key of each table that is written and whose key is a number."""
    return {table.name: transaction.highest_key(table) for table in tables_written(plan) if table.is_numbered}


def _refuse_changed(began: dict[str, Table], now: dict[str, Table]) -> None:
    """Raise TargetError, naming each, when what the run was planned for is gone or of another type."""
    lost = [f"the table {name} is gone" for name in began if name not in now]
    for name in began.keys() & now.keys():
        for column, before in began[name].columns.items():
            after = now[name].columns.get(column)
            if after is None:
                lost.append(f"{name}.{column} is gone")
            elif after.kind != before.kind:
                lost.append(f"{name}.{column} is {after.type_name} and was {before.type_name}")
    if lost:
        reason = f"the target changed since the run began: {', '.join(sorted(lost))}; put it back, and resume"
        raise TargetError(reason, stage="start", resumable=True)


def _refuse_unfit(row: RunRow, mapping: Mapping, *, undoing: bool = False) -> None:
    if row.mapping_sha256 != mapping.sha256:
        reason = (
            f"migration {row.migration_id!r} began under another mapping (sha256 {row.mapping_sha256[:12]}, "
            f"this one is {mapping.sha256[:12]}): give it that one, or roll it back and begin anew"
        )
        raise MigrationError(reason, stage="start")
    if undoing:
        return
    if row.status == "rolled_back":
        raise MigrationError(f"migration {row.migration_id!r} was rolled back; take a new id", stage="start")
    if row.status == "rolling_back":
        reason = f"migration {row.migration_id!r} is half rolled back; roll it back to the end first"
        raise MigrationError(reason, stage="start")
