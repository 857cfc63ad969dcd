"""Rows of the table `events` in PostgreSQL's binary COPY format.

The driver's own encoder hands over nothing before half a megabyte of rows is encoded; these rows stream,
so that the server inserts while the next ones are made (PostgreSQL documentation, COPY, Binary Format).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from struct import Struct
from uuid import UUID

from eventsourcing.storage.base import NewEvent

COLUMNS = (
    "position",
    "recorded_at",
    "timestamp",
    "event_id",
    "event_version",
    "correlation_id",
    "causation_id",
    "event_type",
    "aggregate_id",
    "aggregate_type",
    "metadata",
    "data",
)
"""The order of `row`. All columns are given: one that is left to a volatile default, as `recorded_at`
would be, makes the server insert row by row."""

SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
END = b"\xff\xff"

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NULL = b"\xff\xff\xff\xff"
_fixed = Struct(">hiqiqiqi16sii").pack
_length = Struct(">i").pack


def microseconds(moment: datetime) -> int:
    """PostgreSQL's own form of a moment: microseconds since the year 2000."""
    return (moment - _EPOCH) // _MICROSECOND


def row(new: NewEvent, *, position: int, version: int, recorded_at: int) -> bytes:
    """One row; `recorded_at` in the form of `microseconds`."""
    event = new.event
    aggregate_id = event.aggregate_id.encode()
    correlation_id, causation_id = event.correlation_id, event.causation_id
    return b"".join(
        (
            _fixed(
                *(len(COLUMNS), 8, position, 8, recorded_at, 8, microseconds(event.timestamp)),
                *(16, event.event_id.int.to_bytes(16), 4, version),  # its own `bytes` is a call more
            ),
            _NULL if correlation_id is None else _identifier(correlation_id),
            _NULL if causation_id is None else _identifier(causation_id),
            _word(event.event_type),
            _length(len(aggregate_id)),
            aggregate_id,
            _word(event.aggregate_type),
            _length(len(new.metadata)),
            new.metadata,
            _length(len(new.data)),
            new.data,
        )
    )


def _identifier(value: UUID) -> bytes:
    return _length(16) + value.bytes


@lru_cache(maxsize=1024)
def _word(value: str) -> bytes:
    """A text of which there are few."""
    encoded = value.encode()
    return _length(len(encoded)) + encoded
