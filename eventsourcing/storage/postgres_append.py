"""Appending to PostgreSQL: one event, some, or many, each all or none.

Whatever the way, the order inside an append is part of the guarantee: the horizon is held, then versions
are resolved, then positions are drawn in the caller's order, then rows are inserted sorted by aggregate
(unsorted ones deadlock). One event and some are one statement each; many are copied in, in a
transaction. The insert is tried first and asks nothing: the unique constraints are the check. Only when
it is refused are event ids looked up, before any version, and the rest tried again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID

import asyncpg

from eventsourcing.canonical import decode
from eventsourcing.errors import ConcurrencyError, UnavailableError
from eventsourcing.events import BaseEvent, RecordedEvent
from eventsourcing.storage.base import NewEvent, settle_duplicate
from eventsourcing.storage.postgres_errors import RACE, race_lost, translated
from eventsourcing.storage.postgres_rows import recorded_event
from eventsourcing.storage.statements import statements

MAX_RACES = 200
"""How often an append whose version nobody named starts again after losing a race."""

COPY_FROM = 100
"""The number of events from which copying them in is faster than one statement (`make bench`)."""

COLUMNS = (
    "event_id",
    "event_type",
    "aggregate_id",
    "aggregate_type",
    "event_version",
    "timestamp",
    "correlation_id",
    "causation_id",
    "metadata",
    "data",
)
"""What an event states itself, in the order of both insert statements."""

STORED_COLUMNS = ("position", "recorded_at", *COLUMNS)
"""All columns. A copy that leaves `recorded_at` to its default is inserted row by row: the default is
volatile."""

_EVENTS = statements("events")
_FIELDS = tuple(BaseEvent.model_fields)


async def append(pool: asyncpg.Pool, events: Sequence[NewEvent], *, timeout_s: float) -> list[RecordedEvent]:
    """See EventStorage.append."""
    settled: dict[UUID, RecordedEvent] = {}
    for race in range(MAX_RACES):
        pending = [new for new in events if new.event.event_id not in settled] if settled else events
        fresh = await _insert(pool, pending, timeout_s) if pending else []
        if fresh is not None:
            if not settled:
                return fresh
            settled.update((event.event_id, event) for event in fresh)
            return [settled[new.event.event_id] for new in events]
        stored = await _stored(pool, pending)
        settled.update(stored)
        if not stored:
            await _refuse_conflict(pool, pending)
            await asyncio.sleep(random.uniform(0, 0.001 * min(race, 20)))  # noqa: S311 - spreads writers
    raise UnavailableError(f"lost {MAX_RACES} races for the same aggregate; nothing was appended")


async def _insert(
    pool: asyncpg.Pool, pending: Sequence[NewEvent], timeout_s: float
) -> list[RecordedEvent] | None:
    """Insert everything; None when an id, a version or a race refused it, and then nothing is stored."""
    try:
        with translated(races_pass=True):
            if len(pending) >= COPY_FROM:
                return await _copy(pool, pending, timeout_s)
            if len(pending) == 1:
                rows = await pool.fetch(_EVENTS["append_one"], *_row(pending[0]), timeout=timeout_s)
            else:
                columns = zip(*map(_row, pending), strict=True)
                rows = await pool.fetch(_EVENTS["append_many"], *map(list, columns), timeout=timeout_s)
    except RACE as error:
        if race_lost(error):
            return None
        raise
    if not rows:
        return None
    rows.sort(key=lambda row: cast(int, row["position"]))
    return [_recorded(new, *row) for new, row in zip(pending, rows, strict=True)]


class _VersionTakenError(Exception):
    """A version that must hold is not the next one; leaves the transaction."""


async def _copy(
    pool: asyncpg.Pool, pending: Sequence[NewEvent], timeout_s: float
) -> list[RecordedEvent] | None:
    async with pool.acquire(timeout=timeout_s) as connection:
        try:
            async with asyncio.timeout(timeout_s), connection.transaction():
                return await _copied(connection, pending)
        except _VersionTakenError:
            return None


async def _copied(connection: asyncpg.Connection, pending: Sequence[NewEvent]) -> list[RecordedEvent]:
    streams = dict.fromkeys(new.event.aggregate_id for new in pending)
    opened = await connection.fetchrow(_EVENTS["open_append"], list(streams), len(pending))
    heads = dict(zip(streams, opened["versions"], strict=True))
    recorded_at = opened["recorded_at"]
    places: list[tuple[int, int]] = []
    rows: list[tuple[Any, ...]] = []
    for new, position in zip(pending, opened["positions"], strict=True):
        aggregate_id = new.event.aggregate_id
        heads[aggregate_id] = version = heads[aggregate_id] + 1
        if new.version not in (0, version):
            raise _VersionTakenError
        places.append((position, version))
        rows.append((position, recorded_at, *_row(new, version)))
    rows.sort(key=lambda row: (row[4], row[0]))
    copying = asyncio.create_task(
        connection.copy_records_to_table("events", columns=STORED_COLUMNS, records=rows)
    )
    await asyncio.sleep(0)  # the rows are on their way; what they became is made while the server works
    try:
        recorded = [
            _recorded(new, position, version, recorded_at)
            for new, (position, version) in zip(pending, places, strict=True)
        ]
    finally:
        await copying
    return recorded


async def _stored(pool: asyncpg.Pool, pending: Sequence[NewEvent]) -> dict[UUID, RecordedEvent]:
    by_id = {new.event.event_id: new for new in pending}
    with translated():
        rows = await pool.fetch(_EVENTS["stored"], list(by_id))
    events = map(recorded_event, rows)
    return {event.event_id: settle_duplicate(by_id[event.event_id], event) for event in events}


async def _refuse_conflict(pool: asyncpg.Pool, pending: Sequence[NewEvent]) -> None:
    """Raise for the first event whose named version is not the next one; return after a plain race."""
    ids = list({new.event.aggregate_id for new in pending})
    with translated():
        rows = await pool.fetch(_EVENTS["versions"], ids)
    heads = {row["aggregate_id"]: row["version"] or 0 for row in rows}
    following = dict(heads)
    for new in pending:
        aggregate_id = new.event.aggregate_id
        following[aggregate_id] += 1
        if new.version not in (0, following[aggregate_id]):
            raise ConcurrencyError(aggregate_id, expected=new.version - 1, actual=heads[aggregate_id])


def _row(new: NewEvent, version: int | None = None) -> tuple[Any, ...]:
    """The values of COLUMNS."""
    event = new.event
    return (
        event.event_id,
        event.event_type,
        event.aggregate_id,
        event.aggregate_type,
        new.version if version is None else version,
        event.timestamp,
        event.correlation_id,
        event.causation_id,
        new.metadata,
        new.data,
    )


def _recorded(new: NewEvent, position: int, version: int, recorded_at: Any) -> RecordedEvent:
    """The event as stored; its payload is a copy that later changes of the draft do not reach."""
    stated = new.event.__dict__
    fields = {name: stated[name] for name in _FIELDS}
    fields["event_version"] = version
    fields["metadata"] = decode(new.metadata)
    fields["data"] = decode(new.data)
    fields["position"] = position
    fields["recorded_at"] = recorded_at
    return RecordedEvent.from_store(fields)
