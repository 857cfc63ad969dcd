"""The errors of the migration engine: one tree, each with its stage and whether a resume can help.

MigrationError                  a run stopped (stage, resumable)
├── MappingError                the mapping is wrong (flaws: file, line, field, reason)
├── SourceError                 the source is missing, unreadable or not what the mapping says
├── TargetError                 the target cannot be reached or refused what was asked
│   ├── RecordRefusedError      the target would not take a row (rule, column, reason)
│   ├── TargetNotEmptyError     a target table holds rows and the policy is to fail (table)
│   ├── TargetBusyError         another unfinished run holds the target (holder, since, until)
│   └── TargetLockedError       somebody else's transaction holds what was to be written (held_by); retryable
├── SchemaIncompatibleError     source and target do not fit (blockers)
├── UnknownRunError             the target holds no run of this id
├── StagedDataError             a staged file is missing or not what was written
├── WorkFolderError             a file of the run cannot be written: the disk is full, or may not be written
├── ThresholdExceededError      more records were quarantined than the mapping allows (entity, ratio)
├── RunStoppedError             somebody asked the run to stop; it goes on when resumed
├── VerificationError           the target is not what was migrated (report)
└── StageOrderError             a stage was called before the one that it needs

No message holds a value of a record or a credential of a connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from eventsourcing.errors import EventSourcingError


class MigrationError(EventSourcingError):
    """A run stopped. `resumable` says whether the same migration_id may go on later."""

    def __init__(self, message: str, *, stage: str = "", resumable: bool = False) -> None:
        self.stage, self.resumable = stage, resumable
        super().__init__(message)


@dataclass(frozen=True)
class Flaw:
    """One thing that is wrong with a mapping: `line` is 1-based, 0 when the whole file is meant; `field` is
    a dotted path, empty for the whole."""

    reason: str
    file: str = "mapping"
    line: int = 0
    field: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.field}: {self.reason}" if self.field else f"{where}: {self.reason}"


MOST_TOLD = 50
"""How many lines an error has; what is beyond is counted."""


def _listed(what: str, found: Sequence[str]) -> str:
    """One line for one thing; a heading and a line for each for several."""
    if len(found) == 1:
        return f"{what}: {found[0]}"
    more = [f"and {len(found) - MOST_TOLD} more"] if len(found) > MOST_TOLD else []
    return "\n".join([f"{what} in {len(found)} places:", *found[:MOST_TOLD], *more])


class MappingError(MigrationError):
    """The mapping is wrong. Nothing was written.

    `flaws` are the first fifty of all `count`, by line. The message has a line for each: file, line, field,
    reason; above several stands how many there are.
    """

    def __init__(self, flaws: Sequence[Flaw]) -> None:
        self.flaws, self.count = tuple(flaws[:MOST_TOLD]), len(flaws)
        told = str(flaws[0]) if self.count == 1 else _listed("the mapping is wrong", [*map(str, flaws)])
        super().__init__(told, stage="mapping")


class SourceError(MigrationError):
    """The source is missing, unreadable, or holds something that no run can carry."""


class TargetError(MigrationError):
    """The target cannot be reached, lacks a table, or refused a statement; its transaction was undone."""


class RecordRefusedError(TargetError):
    """The target would not take one of the rows written; its savepoint was undone, the rest stands.

    `rule` is the rule of a mapping that says the same where there is one (`unique`, `required`,
    `reference`, `max_length`, `range`), else `check`, `type` or `trigger`. `column` is empty when the
    target does not name it.
    """

    def __init__(self, rule: str, column: str, reason: str) -> None:
        self.rule, self.column, self.reason = rule, column, reason
        where = f" of column {column!r}" if column else ""
        super().__init__(f"the target refused a row{where}: {reason}", stage="load", resumable=True)


class TargetNotEmptyError(TargetError):
    """A target table holds rows already, and the conflict policy is `fail`. Nothing was written."""

    def __init__(self, table: str) -> None:
        self.table = table
        super().__init__(f"target table {table!r} is not empty (on_conflict: fail)", stage="start")


class TargetBusyError(TargetError):
    """Another unfinished run holds the target until its lease ends, which it renews while it goes on.
    Nothing was written."""

    def __init__(self, holder: str, *, since: datetime, until: datetime) -> None:
        self.holder, self.since, self.until = holder, since, until
        super().__init__(
            f"migration {holder!r} holds the target since {since:%Y-%m-%d %H:%M:%S} UTC, and until "
            f"{until:%H:%M:%S} unless it goes on: wait for it, cancel it, or resume it to its end",
            stage="start",
            resumable=True,
        )


class TargetLockedError(TargetError):
    """Somebody else's transaction held what was to be written, for all the time that a statement waits.
    The transaction was undone, what was committed before stands; the same call may succeed later."""

    retryable = True

    def __init__(self, held_by: str, *, waited_s: float) -> None:
        self.held_by = held_by
        super().__init__(
            f"gave up after {waited_s:.0f} s: {held_by}; let it finish, or end it, and resume",
            resumable=True,
        )


class SchemaIncompatibleError(MigrationError):
    """Source and target do not fit; `blockers` says why, one line each, as the message does. No record
    was written."""

    def __init__(self, blockers: list[str]) -> None:
        self.blockers = blockers
        super().__init__(_listed("the schemas do not fit", blockers), stage="schema")


class UnknownRunError(MigrationError):
    """The target holds no run of this id: it never began, or in another target. Nothing was done."""

    def __init__(self, migration_id: str) -> None:
        super().__init__(f"the target holds no migration {migration_id!r}", stage="start")


class StagedDataError(MigrationError):
    """A staged file is missing or its checksum differs. Nothing of it was used."""


class WorkFolderError(MigrationError):
    """The folder in which runs stage their files cannot be written. What was staged before stands."""

    def __init__(self, error: OSError) -> None:
        why = (error.strerror or type(error).__name__).lower()
        super().__init__(f"the work folder cannot be written: {why}; make room, and resume", resumable=True)


class ThresholdExceededError(MigrationError):
    """More of an entity was quarantined than the mapping allows. No record was written."""

    def __init__(self, entity: str, *, ratio: float, allowed: float) -> None:
        self.entity, self.ratio, self.allowed = entity, ratio, allowed
        super().__init__(f"{ratio:.2%} of {entity} broke a rule, {allowed:.2%} are allowed", stage="validate")


class RunStoppedError(MigrationError):
    """Somebody asked the run to stop. What is done stays done; the same id resumes it."""

    def __init__(self, migration_id: str) -> None:
        super().__init__(f"migration {migration_id!r} was stopped; it can be resumed", resumable=True)


class VerificationError(MigrationError):
    """The target differs from what was migrated. It was left as it is."""


class StageOrderError(MigrationError):
    """A stage was called before the one that it needs. Nothing was done."""

    def __init__(self, stage: str, *, needs: str) -> None:
        super().__init__(f"{stage} comes after {needs}, which is not done", stage=stage, resumable=True)
