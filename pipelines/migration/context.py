"""What every stage works with: one run's mapping, plan, databases, manifest, events and progress."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from pipelines.migration.announce import Announcer
from pipelines.migration.chunks import Chunk, link_chunk, read_chunk, remove_stage, write_chunk
from pipelines.migration.errors import MigrationError, RunStoppedError, StageOrderError, TargetError
from pipelines.migration.manifest import Manifest, StageOutcome
from pipelines.migration.masking import Masker
from pipelines.migration.plan import Plan
from pipelines.migration.schema import Table
from pipelines.migration.target import Target
from pipelines.migration.worktables import RunRow, update_run

_REPORT_EVERY_S = 0.1
_RENEW_EVERY_S = 15.0

ATTEMPT_CHUNKS = 1_000_000
"""The chunks of attempt n are numbered from (n - 1) times this, so that all attempts of a run are one run:
rollback and verification know nothing of attempts."""


class Progress(NamedTuple):
    """How far a stage is, in records of one entity; reported at most ten times a second."""

    stage: str
    entity: str
    done: int
    total: int
    waits: str = ""
    """What the stage waits for, and who holds it; empty while it goes on."""


@dataclass
class Reporter:
    """Passes progress on, seldom enough, and the end of an entity always."""

    hook: Callable[[Progress], None] | None
    stop: threading.Event = field(default_factory=threading.Event)
    """Set from any thread: the run stops at its next report, which every chunk makes."""
    _last: float = field(default=0.0, init=False)
    _progress: Progress = field(default=Progress("start", "", 0, 0), init=False)

    def report(self, stage: str, entity: str, done: int, total: int) -> None:
        """Report unless the last report was less than 0.1 s ago; the first and the last of an entity's
        stage are always reported."""
        now, before = time.monotonic(), self._progress
        self._progress = Progress(stage, entity, done, total)
        is_new = (stage, entity) != before[:2] or bool(before.waits)
        due = done == total or is_new or now - self._last >= _REPORT_EVERY_S
        if self.hook is not None and due:
            self._last = now
            self.hook(self._progress)

    def wait(self, waits: str) -> None:
        """Report that what is under way waits, and for whom; called once a second while it does."""
        self._progress = self._progress._replace(waits=waits)
        if self.hook is not None:
            self.hook(self._progress)


@dataclass
class RunContext:
    """One run, as a stage sees it."""

    row: RunRow
    plan: Plan
    target: Target
    manifest: Manifest
    announcer: Announcer
    masker: Masker
    reporter: Reporter
    attempt: int = 1
    """1 is the run itself; each retry of its quarantine is the next one, with a manifest of its own."""
    earlier: tuple[Manifest, ...] = ()
    """The manifests of the attempts before, the first one first."""
    _renewed: float = field(default_factory=time.monotonic, init=False)

    @property
    def migration_id(self) -> str:
        """The run's id."""
        return self.row.migration_id

    @property
    def folder(self) -> Path:
        """Where the run stages its files."""
        return self.manifest.folder

    def outcome(self, stage: str) -> StageOutcome | None:
        """What a stage found, or None while it is not done."""
        return self.manifest.outcomes.get(stage)

    def require(self, stage: str, *, needs: str) -> None:
        """Raise StageOrderError unless the stage that is needed is done."""
        if self.outcome(needs) is None:
            raise StageOrderError(stage, needs=needs)

    def finish(self, stage: str, facts: dict[str, Any], *, at: datetime | None = None) -> StageOutcome:
        """Make a stage's outcome durable: from here on it is done."""
        outcome = self.keep(stage, facts, at=at)
        with self.target.transaction() as transaction:
            update_run(transaction.connection, self.migration_id, stage=stage)
        return outcome

    def keep(self, stage: str, facts: dict[str, Any], *, at: datetime | None = None) -> StageOutcome:
        """Make an outcome durable that does not bring the run on: of a verification, at any time."""
        outcome = StageOutcome(stage, at or datetime.now(UTC), facts, self.row.attempt)
        self.manifest.outcomes[stage] = outcome
        self.manifest.save()
        return outcome

    def set_status(self, status: str) -> None:
        """End a running run: it lets go of the target."""
        if self.row.status == "running":
            with self.target.transaction() as transaction:
                update_run(transaction.connection, self.migration_id, holds=False, status=status)

    def progress(self, stage: str, entity: str, done: int, total: int) -> None:
        """Report progress, and renew the lease of the target when it is time.

        Raises RunStoppedError when somebody asked the run to stop.
        """
        self.refuse_when_stopped()
        if time.monotonic() - self._renewed > _RENEW_EVERY_S:
            self._renewed = time.monotonic()
            with suppress(TargetError), self.target.transaction() as transaction:
                update_run(transaction.connection, self.migration_id)  # a target that is gone tells it soon
        self.reporter.report(stage, entity, done, total)

    def refuse_when_stopped(self) -> None:
        """Raise RunStoppedError when somebody asked the run to stop."""
        if self.reporter.stop.is_set():
            raise RunStoppedError(self.migration_id)

    @property
    def first_chunk(self) -> int:
        """The number of the attempt's first chunk."""
        return (self.attempt - 1) * ATTEMPT_CHUNKS

    @property
    def attempts(self) -> tuple[Manifest, ...]:
        """The manifests of all attempts up to this one."""
        return (*self.earlier, self.manifest)

    def keys_given(self, table: Table) -> int:
        """How many keys above the run's first one earlier attempts gave to the rows of a table, or more."""
        if self.attempt == 1 or not table.is_numbered:
            return 0
        with self.target.transaction() as transaction:
            return max(transaction.highest_key(table) - self.row.first_keys.get(table.name, 0), 0)

    def staged(self, stage: str, name: str) -> list[Chunk]:
        """The files that a stage staged for an entity, in order.

        Its children's files stand at the same places of their lists; a chunk's number is no place.
        """
        return self.manifest.staged[stage][name]

    def read(self, chunk: Chunk) -> pl.DataFrame:
        """A staged frame."""
        return read_chunk(self.folder, chunk)

    def write(self, stage: str, name: str, number: int, frame: pl.DataFrame) -> None:
        """Stage a frame; the manifest learns of it with the stage's outcome."""
        chunk = write_chunk(self.folder, f"{stage}/{name}", number, frame)
        self.manifest.staged.setdefault(stage, {}).setdefault(name, []).append(chunk)

    def link(self, stage: str, name: str, chunk: Chunk) -> None:
        """Stage what another stage staged, as it is."""
        linked = link_chunk(self.folder, chunk, f"{stage}/{name}")
        self.manifest.staged.setdefault(stage, {}).setdefault(name, []).append(linked)

    def remove_staged(self) -> None:
        """Remove the rows that every attempt staged; what is in quarantine is told without any value."""
        for attempt in self.attempts:
            for stage in ("extract", "transform", "matched", "valid"):
                remove_stage(attempt.folder, stage)

    def begin_stage(self, stage: str) -> None:
        """Forget what an unfinished attempt staged."""
        self.manifest.staged[stage] = {}


def check_accounting(stage: str, counts: dict[str, dict[str, int]]) -> None:
    """Raise unless rows in = out + quarantined + filtered, for every entity (guarantee G9)."""
    for entity, count in counts.items():
        if count["in"] != count["out"] + count["quarantined"] + count["filtered"]:
            raise MigrationError(f"the accounting of {entity} does not add up: {count}", stage=stage)
