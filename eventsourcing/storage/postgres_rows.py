"""Rows of the table `events` and the records they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime

import asyncpg

from eventsourcing.errors import UpcastError
from eventsourcing.events import RecordedEvent


async def use_canonical_json(connection: asyncpg.Connection) -> None:
    """Have JSON columns written and read as the bytes they are."""
    await connection.set_builtin_type_codec(
        "json", schema="pg_catalog", codec_name="bytea", format="binary"
    )  # on the wire they are the same, and this codec calls nothing of Python's


recorded_event = RecordedEvent.from_row
"""The event in a row of `select_events`: its columns are the fields, in their order."""


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
