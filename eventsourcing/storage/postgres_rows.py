"""Rows of the table `events` and the records they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime

import asyncpg

from eventsourcing.canonical import decode
from eventsourcing.errors import UpcastError
from eventsourcing.events import EventType, RecordedEvent

_NAMES = tuple(RecordedEvent.model_fields)
"""The columns of `select_events`, in its order."""

_TYPES: dict[str, str] = {member.value: member for member in EventType}


async def use_canonical_json(connection: asyncpg.Connection) -> None:
    """Have JSON columns written as they are given, encoded, and read as values."""
    await connection.set_type_codec(
        "json", schema="pg_catalog", format="binary", encoder=lambda encoded: encoded, decoder=decode
    )


def recorded_event(row: asyncpg.Record, *, as_stored: bool = False) -> RecordedEvent:
    """The event in a row of `select_events`, with its newest payload or the one that is stored."""
    fields = dict(zip(_NAMES, row, strict=True))
    fields["event_type"] = _TYPES.get(fields["event_type"], fields["event_type"])
    fields["timestamp"] = in_utc(fields["timestamp"])
    return RecordedEvent.from_store(fields, as_stored=as_stored)


def recorded_events(rows: Sequence[asyncpg.Record]) -> Iterator[list[RecordedEvent]]:
    """The events in a page, as one batch. Where one cannot be read: those before it, then its UpcastError."""
    try:
        events = list(map(recorded_event, rows))
    except UpcastError:
        events = []
        with suppress(UpcastError):
            events.extend(map(recorded_event, rows))  # what came before the fault stays in the list
        if events:
            yield events
        raise
    yield events


def in_utc(moment: datetime) -> datetime:
    """The moment as it was stored: asyncpg keeps the first and the last one as infinities without a zone."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
