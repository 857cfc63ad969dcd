"""The errors of the library: one tree, typed attributes, and whether trying again can help.

EventSourcingError
├── ConfigurationError          a setting is missing, unknown or contradictory
├── InvalidEventError           an event that no store would take (field, index)
├── ConcurrencyError            another writer was there first (aggregate_id, expected, actual)
├── DuplicateEventError         an event_id was used before with other content (event_id, field)
├── NotFoundError               nothing has this id (kind, key)
├── CursorAheadError            a reader knows positions that the store does not (cursor, head)
├── UpcastError                 a stored payload cannot be read as the newest (event_id, event_type, version)
├── BackfillRefusedError        rows of a backfill are no events, or not of the past (faults, count, rows)
├── BreakingChangeError         the code's event schemas break those that others rely on (changes)
├── SchemaError                 the database's schema is not the one this version needs
├── UnavailableError            the database or the broker cannot serve now (outcome_unknown); retryable
├── BusyError                   another process does what must be done by one at a time; retryable
├── StateForbidsError           what was asked does not fit the state it is in (kind, key, status)
├── PermanentError              what a handler raises when trying again cannot help: parks at once
├── HandlerTimeoutError         a handler did not come back in time
└── HandlerError                a handler gave up on an event (event_id, handler, attempts; cause kept)

The state left behind is the same for all that an append raises: nothing of the call is appended. The one
exception says so: UnavailableError with `outcome_unknown`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from eventsourcing.wording import counted


class EventSourcingError(Exception):
    """The root of the tree. `retryable` says whether the same call may succeed later."""

    retryable = False


class ConfigurationError(EventSourcingError):
    """A setting is missing, unknown or contradicts another one. Nothing was started."""


class InvalidEventError(EventSourcingError):
    """An event cannot be stored as it is. `field` is a dotted path, `index` the place in the batch."""

    def __init__(self, reason: str, *, field: str = "", index: int | None = None) -> None:
        self.reason, self.field, self.index = reason, field, index
        where = f"event {index}: " if index is not None else ""
        super().__init__(f"{where}{field}: {reason}" if field else f"{where}{reason}")


class ConcurrencyError(EventSourcingError):
    """Another writer appended to the aggregate first. Read it again, decide again, append again.

    `expected` and `actual` are the versions of the aggregate's last event; 0 means no stream.
    """

    def __init__(self, aggregate_id: str, *, expected: int, actual: int) -> None:
        self.aggregate_id, self.expected, self.actual = aggregate_id, expected, actual
        super().__init__(f"aggregate {aggregate_id!r} is at version {actual}, not at the expected {expected}")


class DuplicateEventError(EventSourcingError):
    """The event_id is stored already, with another `field` than the event now given."""

    def __init__(self, event_id: UUID, *, field: str) -> None:
        self.event_id, self.field = event_id, field
        super().__init__(f"event {event_id} is already stored with another {field}")


class NotFoundError(EventSourcingError):
    """Nothing of this kind has this key."""

    def __init__(self, kind: str, key: str) -> None:
        self.kind, self.key = kind, key
        super().__init__(f"no {kind} {key!r}")


class CursorAheadError(EventSourcingError):
    """A cursor lies above the highest committed position: the store was restored to an earlier state.

    Nothing was read or appended. Going on would skip the events that will get these positions again.
    """

    def __init__(self, cursor: int, head: int) -> None:
        self.cursor, self.head = cursor, head
        super().__init__(
            f"cursor {cursor} is ahead of the store, whose last position is {head}: the store was restored "
            "to an earlier state; see docs/guides/backup-and-restore.md"
        )


class UpcastError(EventSourcingError):
    """A stored payload cannot be read: its version is not known here, or an upcast failed.

    Nothing is skipped: whoever reads stops before the event, and goes on once the code is right; who can
    do without its payload goes on past it (unreadable). `fields` are the event's, as they are stored.
    """

    def __init__(
        self, event_id: UUID, *, event_type: str, version: object, reason: str, fields: dict[str, Any]
    ) -> None:
        self.event_id, self.event_type, self.version, self.reason = event_id, event_type, version, reason
        self.fields = fields
        super().__init__(f"event {event_id} ({event_type}, schema_version {version}): {reason}")


class BackfillRefusedError(EventSourcingError):
    """A backfill has rows that are refused. Nothing was appended.

    `faults` are sentences that begin with the row, the first ones of `count`; `rows` is how many there were.
    """

    def __init__(self, faults: Sequence[str], *, count: int, rows: int) -> None:
        self.faults, self.count, self.rows = tuple(faults), count, rows
        more = [f"and {count - len(faults)} more"] if count > len(faults) else []
        head = f"{counted(count, 'fault')} in {counted(rows, 'row')}; nothing was appended"
        super().__init__("\n".join([head, *self.faults, *more]))


class BreakingChangeError(EventSourcingError):
    """The event classes do not keep to the schemas that were accepted. `changes` are sentences that name
    type, field and cure. No file was changed."""

    def __init__(self, changes: Sequence[str]) -> None:
        self.changes = tuple(changes)
        super().__init__("\n".join(self.changes))


class SchemaError(EventSourcingError):
    """The database's schema is older or newer than this version needs. Nothing was changed."""


class UnavailableError(EventSourcingError):
    """The database or the broker cannot serve now. Nothing of the call is stored, unless `outcome_unknown`.

    `outcome_unknown`: the connection was lost before the answer came, so what was in flight may or may
    not be stored. Append again with the same event ids, and the store settles it: nothing is doubled.
    """

    retryable = True

    def __init__(self, reason: str, *, outcome_unknown: bool = False) -> None:
        self.outcome_unknown = outcome_unknown
        super().__init__(reason)


class BusyError(EventSourcingError):
    """Another process does what must be done by one at a time. Nothing was changed."""

    retryable = True


class StateForbidsError(EventSourcingError):
    """What was asked for does not fit the state that its object is in. Nothing was changed."""

    def __init__(self, kind: str, key: str, status: str) -> None:
        self.kind, self.key, self.status = kind, key, status
        super().__init__(f"{kind} {key!r} is {status}")


class PermanentError(EventSourcingError):
    """Raised by a handler for an event that it will never take: its aggregate is parked at once."""


class HandlerTimeoutError(EventSourcingError):
    """A handler did not come back in time and was cancelled. It is tried again like after any error."""


class HandlerError(EventSourcingError):
    """A handler failed on an event after `attempts` tries. The cause is chained."""

    def __init__(self, event_id: UUID, *, handler: str, attempts: int, reason: str) -> None:
        self.event_id, self.handler, self.attempts = event_id, handler, attempts
        super().__init__(
            f"{handler} failed on event {event_id} after {counted(attempts, 'attempt')}: {reason}"
        )
