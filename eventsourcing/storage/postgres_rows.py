"""Rows of the table `events` and the records they are."""

from __future__ import annotations

from datetime import UTC

import asyncpg

from eventsourcing.canonical import decode
from eventsourcing.events import EventType, RecordedEvent

_NAMES = tuple(RecordedEvent.model_fields)
"""The columns of `select_events`, in its order."""

_TYPES: dict[str, str] = {member.value: member for member in EventType}


async def use_canonical_json(connection: asyncpg.Connection) -> None:
    """Have JSON columns written as they are given, encoded, and read as values."""
    await connection.set_type_codec(
        "json", schema="pg_catalog", format="binary", encoder=lambda encoded: encoded, decoder=decode
    )


def recorded_event(row: asyncpg.Record) -> RecordedEvent:
    """The event in a row of `select_events`."""
    fields = dict(zip(_NAMES, row, strict=True))
    fields["event_type"] = _TYPES.get(fields["event_type"], fields["event_type"])
    if fields["timestamp"].tzinfo is None:  # asyncpg keeps the first and the last moment as infinities
        fields["timestamp"] = fields["timestamp"].replace(tzinfo=UTC)
    return RecordedEvent.from_store(fields)
