"""Rows of the table `events` in PostgreSQL's binary COPY format.

The driver's own encoder hands over nothing before half a megabyte of rows is encoded; these rows stream,
so that the server inserts while the next ones are made (PostgreSQL documentation, COPY, Binary Format).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from struct import Struct
from typing import Any
from uuid import UUID

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


def row(fields: tuple[Any, ...], recorded_at: int) -> tuple[bytes, ...]:
    """The parts of one row, from an event's fields in their order; `recorded_at` in the form of
    `microseconds`."""
    (event_id, event_type, aggregate_id, aggregate_type, version, timestamp, correlation_id, causation_id,
     metadata, data, position, _) = fields  # fmt: skip
    name = aggregate_id.encode()
    return (
        _fixed(
            *(len(COLUMNS), 8, position, 8, recorded_at, 8, (timestamp - _EPOCH) // _MICROSECOND),
            *(16, event_id.int.to_bytes(16), 4, version),  # its own `bytes` is a call more
        ),
        _NULL if correlation_id is None else _identifier(correlation_id),
        _NULL if causation_id is None else _identifier(causation_id),
        _word(event_type),
        _length(len(name)),
        name,
        _word(aggregate_type),
        _length(len(metadata)),
        metadata,
        _length(len(data)),
        data,
    )


def _identifier(value: UUID) -> bytes:
    return _length(16) + value.bytes


@lru_cache(maxsize=1024)
def _word(value: str) -> bytes:
    """A text of which there are few."""
    encoded = value.encode()
    return _length(len(encoded)) + encoded
