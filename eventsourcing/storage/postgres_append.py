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
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any
from uuid import UUID

import asyncpg

from eventsourcing.errors import ConcurrencyError, UnavailableError
from eventsourcing.events import RecordedEvent
from eventsourcing.metrics import count_appended
from eventsourcing.storage import copyformat
from eventsourcing.storage.base import Appended, NewEvent, settle_duplicate
from eventsourcing.storage.postgres_errors import RACE, race_lost
from eventsourcing.storage.postgres_pool import ConnectionPool
from eventsourcing.storage.postgres_rows import recorded_event
from eventsourcing.storage.statements import statements

MAX_RACES = 200
"""How often an append whose version nobody named starts again after losing a race."""

COPY_FROM = 200
"""The number of events from which copying them in costs less than one statement: below, its round trips
weigh more than its rows (measured with 32 callers at a time)."""

ROWS_A_PIECE = 128
"""How many rows are handed to the server at a time."""

_EVENTS = statements("events")
_NONE: frozenset[UUID] = frozenset()


class Appender:
    """Appends through one pool."""

    def __init__(self, pool: ConnectionPool, *, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._expects_new_streams = True

    async def append(self, events: Sequence[NewEvent]) -> Appended:
        """See EventStorage.append."""
        settled: dict[UUID, RecordedEvent] = {}
        for race in range(MAX_RACES):
            pending = [new for new in events if new.event.event_id not in settled] if settled else events
            fresh = await self.insert(pending) if pending else []
            if fresh is not None:
                if not settled:
                    return Appended(fresh, _NONE)
                found = frozenset(settled)
                settled.update((event.event_id, event) for event in fresh)
                return Appended([settled[new.event.event_id] for new in events], found)
            stored = await self._stored(pending)
            settled.update(stored)
            count_appended(Counter(event.event_type for event in stored.values()), "found")
            if not stored:
                await self._refuse_conflict(pending)
                await asyncio.sleep(random.uniform(0, 0.001 * min(race, 20)))  # noqa: S311 - spreads writers
        raise UnavailableError(f"lost {MAX_RACES} races for the same aggregate; nothing was appended")

    async def insert(self, pending: Sequence[NewEvent]) -> list[RecordedEvent] | None:
        """Insert everything; None when an id, a version or a race refused it, and then nothing is stored."""
        try:
            fresh = await (self._copy if len(pending) >= COPY_FROM else self._insert)(pending)
        except RACE as error:
            if race_lost(error):
                return None
            raise
        if fresh is not None:
            count_appended(Counter(new.event.event_type for new in pending))
        return fresh

    async def _insert(self, pending: Sequence[NewEvent]) -> list[RecordedEvent] | None:
        """Insert in one statement."""
        values = list(map(_row, pending))
        one = len(values) == 1
        parameters = values[0] if one else map(list, zip(*values, strict=True))
        statement = _EVENTS["append_one" if one else "append_many"]
        rows = await self._pool.fetch(statement, *parameters, races_pass=True)
        if not rows:
            return None
        rows.sort(key=itemgetter("position"))
        return [recorded_event(_fields(new, *row)) for new, row in zip(pending, rows, strict=True)]

    async def _copy(self, pending: Sequence[NewEvent]) -> list[RecordedEvent] | None:
        """Copy everything in. Streams are taken for new for as long as they were: looking their versions
        up costs a third of the copy, and the unique constraint refuses a version that is taken."""
        streams = dict.fromkeys(new.event.aggregate_id for new in pending)
        named = [new.event.aggregate_id for new in pending if new.version > 1]
        looked_up = list(dict.fromkeys(named) if self._expects_new_streams else streams)
        try:
            async with self._pool.transaction(limit_s=self._timeout_s) as connection:
                opened = await connection.fetchrow(_EVENTS["open_append"], looked_up, len(pending))
                heads = dict.fromkeys(streams, 0) | dict(zip(looked_up, opened["versions"], strict=True))
                versions = _next_versions(pending, heads)
                recorded: dict[int, RecordedEvent] = {}
                await connection.copy_to_table(
                    "events",
                    source=_pieces(pending, versions, opened, recorded),
                    columns=copyformat.COLUMNS,
                    format="binary",
                )
        except _VersionTakenError:
            return None
        except asyncpg.UniqueViolationError:
            self._expects_new_streams = False
            raise
        if looked_up:
            self._expects_new_streams = not any(opened["versions"])
        return list(map(recorded.__getitem__, range(len(pending))))

    async def _stored(self, pending: Sequence[NewEvent]) -> dict[UUID, RecordedEvent]:
        by_id = {new.event.event_id: new for new in pending}
        rows = await self._pool.fetch(_EVENTS["stored"], list(by_id))
        events = (recorded_event(row, as_stored=True) for row in rows)
        return {event.event_id: settle_duplicate(by_id[event.event_id], event) for event in events}

    async def _refuse_conflict(self, pending: Sequence[NewEvent]) -> None:
        """Raise for the first event whose named version is not the next one; return after a plain race."""
        ids = list({new.event.aggregate_id for new in pending})
        rows = await self._pool.fetch(_EVENTS["versions"], ids)
        heads = {row["aggregate_id"]: row["version"] or 0 for row in rows}
        following = dict(heads)
        for new in pending:
            aggregate_id = new.event.aggregate_id
            following[aggregate_id] += 1
            if new.version not in (0, following[aggregate_id]):
                raise ConcurrencyError(aggregate_id, expected=new.version - 1, actual=heads[aggregate_id])


class _VersionTakenError(Exception):
    """A version that must hold is not the next one; leaves the transaction."""


def _next_versions(pending: Sequence[NewEvent], heads: dict[str, int]) -> list[int]:
    """The version of each event after these heads. Raises when one that must hold is another."""
    versions = []
    for new in pending:
        aggregate_id = new.event.aggregate_id
        heads[aggregate_id] = version = heads[aggregate_id] + 1
        if new.version not in (0, version):
            raise _VersionTakenError
        versions.append(version)
    return versions


async def _pieces(
    pending: Sequence[NewEvent],
    versions: list[int],
    opened: asyncpg.Record,
    recorded: dict[int, RecordedEvent],
) -> AsyncIterator[bytes]:
    """The rows to copy, sorted by aggregate; fills `recorded`, by place, while the server works."""
    moment, positions = opened["recorded_at"], opened["positions"]
    stamp = copyformat.microseconds(moment)
    ids = [new.event.aggregate_id for new in pending]
    order = sorted(range(len(pending)), key=ids.__getitem__)
    yield copyformat.SIGNATURE
    for start in range(0, len(order), ROWS_A_PIECE):
        parts: list[bytes] = []
        for place in order[start : start + ROWS_A_PIECE]:
            fields = _fields(pending[place], positions[place], versions[place], moment)
            parts += copyformat.row(fields, stamp)
            recorded[place] = recorded_event(fields)
        yield b"".join(parts)
    yield copyformat.END


def _row(new: NewEvent) -> tuple[Any, ...]:
    """The parameters of an insert, in the order of both statements."""
    event = new.event
    return (
        event.event_id,
        event.event_type,
        event.aggregate_id,
        event.aggregate_type,
        new.version,
        event.timestamp,
        event.correlation_id,
        event.causation_id,
        new.metadata,
        new.data,
    )


def _fields(new: NewEvent, position: int, version: int, recorded_at: datetime) -> tuple[Any, ...]:
    """The event as a row has it; its payload is what was encoded, which later changes of the draft do not
    reach."""
    event = new.event
    return (
        event.event_id,
        event.event_type,
        event.aggregate_id,
        event.aggregate_type,
        version,
        event.timestamp,
        event.correlation_id,
        event.causation_id,
        new.metadata,
        new.data,
        position,
        recorded_at,
    )
