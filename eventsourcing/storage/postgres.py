"""The storage on PostgreSQL, through asyncpg.

Appends take no global lock. Each holds a shared advisory lock keyed by the last position drawn before
its own (a trigger sees to it), and `horizon` stops readers below the smallest key held: whoever has
read up to the horizon never later finds an event at or below it. Within an aggregate, position order
is version order, for a version is resolved in a snapshot taken before its position is drawn.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC
from typing import Any, cast
from uuid import UUID

import asyncpg
from sqlalchemy.engine import make_url

from eventsourcing.canonical import decode
from eventsourcing.errors import ConcurrencyError, CursorAheadError, UnavailableError
from eventsourcing.events import BaseEvent, EventType, RecordedEvent
from eventsourcing.query import EventQuery
from eventsourcing.storage.base import NewEvent, StateTransaction, settle_duplicate
from eventsourcing.storage.fragments import keyset_column, page
from eventsourcing.storage.postgres_errors import RACE, race_lost, translated
from eventsourcing.storage.postgres_states import PostgresTransaction
from eventsourcing.storage.schema import upgrade_if_empty
from eventsourcing.storage.statements import statements

MAX_RACES = 200
"""How often an append whose version nobody named starts again after losing a race."""

POLL_S = 0.02
"""How often a waiting reader asks whether anything has been drawn."""

_EVENTS = statements("events")
_STATES = statements("states")
_TYPES: dict[str, str] = {member.value: member for member in EventType}


class PostgresStorage:
    """Events in the table `events`, states in the table `states`."""

    def __init__(self, database_url: str, *, pool_size: int = 8, append_timeout_s: float = 30.0) -> None:
        self._url = make_url(database_url)
        self._pool_size = pool_size
        self._append_timeout_s = append_timeout_s
        self._pool: asyncpg.Pool | None = None
        self._allocated = (0.0, 0)

    async def open(self) -> None:
        """See EventStorage.open."""
        if self._pool is not None:
            return
        with translated():
            await upgrade_if_empty(self._url)
            self._pool = await asyncpg.create_pool(
                self._url.set(drivername="postgresql").render_as_string(hide_password=False),
                min_size=1,
                max_size=self._pool_size,
                init=_use_canonical_json,
                command_timeout=60,
                timeout=10,
            )

    async def close(self) -> None:
        """See EventStorage.close."""
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                await asyncio.wait_for(pool.close(), timeout=5)
            except TimeoutError:
                pool.terminate()

    @property
    def pool(self) -> asyncpg.Pool:
        """The open pool. Raises UnavailableError while the storage is closed."""
        if self._pool is None:
            raise UnavailableError("the storage is not open")
        return self._pool

    async def append(self, events: Sequence[NewEvent]) -> list[RecordedEvent]:
        """See EventStorage.append.

        The statement is tried first and asks nothing; only when it is refused are event ids looked
        up, before any version, and the rest appended without those that are stored already.
        """
        settled: dict[UUID, RecordedEvent] = {}
        for race in range(MAX_RACES):
            pending = [new for new in events if new.event.event_id not in settled]
            fresh = await self._insert(pending) if pending else []
            if fresh is not None:
                settled.update((event.event_id, event) for event in fresh)
                return [settled[new.event.event_id] for new in events]
            stored = await self._stored(pending)
            settled.update(stored)
            if not stored:
                await self._refuse_conflict(pending)
                await asyncio.sleep(random.uniform(0, 0.001 * min(race, 20)))  # noqa: S311 - spreads writers
        raise UnavailableError(f"lost {MAX_RACES} races for the same aggregate; nothing was appended")

    async def _insert(self, pending: list[NewEvent]) -> list[RecordedEvent] | None:
        """Insert everything in one statement; None when an id, a version or a race refused it."""
        try:
            with translated(races_pass=True):
                if len(pending) == 1:
                    rows = await self.pool.fetch(
                        _EVENTS["append_one"], *_row(pending[0]), timeout=self._append_timeout_s
                    )
                else:
                    columns = zip(*map(_row, pending), strict=True)
                    rows = await self.pool.fetch(
                        _EVENTS["append_many"], *map(list, columns), timeout=self._append_timeout_s
                    )
        except RACE as error:
            if race_lost(error):
                return None
            raise
        if not rows:
            return None
        rows.sort(key=lambda row: cast(int, row["position"]))
        return [_recorded(new, row) for new, row in zip(pending, rows, strict=True)]

    async def _stored(self, pending: list[NewEvent]) -> dict[UUID, RecordedEvent]:
        by_id = {new.event.event_id: new for new in pending}
        with translated():
            rows = await self.pool.fetch(_EVENTS["stored"], list(by_id))
        events = map(_read_row, rows)
        return {event.event_id: settle_duplicate(by_id[event.event_id], event) for event in events}

    async def _refuse_conflict(self, pending: list[NewEvent]) -> None:
        """Raise for the first event whose named version is not the next one; return after a plain race."""
        ids = list({new.event.aggregate_id for new in pending})
        with translated():
            rows = await self.pool.fetch(_EVENTS["versions"], ids)
        heads = {row["aggregate_id"]: row["version"] or 0 for row in rows}
        following = dict(heads)
        for new in pending:
            aggregate_id = new.event.aggregate_id
            following[aggregate_id] += 1
            if new.version not in (0, following[aggregate_id]):
                raise ConcurrencyError(aggregate_id, expected=new.version - 1, actual=heads[aggregate_id])

    async def read(self, query: EventQuery, *, batch_size: int) -> AsyncIterator[list[RecordedEvent]]:
        """See EventStorage.read. Each batch is one page by keyset; no connection is held between them."""
        if query.after_position:
            head = await self.head()
            if query.after_position > head:
                raise CursorAheadError(query.after_position, head)
        left, cursor = query.limit, None
        while left is None or left > 0:
            size = batch_size if left is None else min(batch_size, left)
            sql, values = page(query, cursor=cursor, size=size)
            with translated():
                rows = await self.pool.fetch(sql, *values)
            if rows:
                yield [_read_row(row) for row in rows]
            if len(rows) < size:
                return
            cursor = rows[-1][keyset_column(query)]
            left = None if left is None else left - size

    async def horizon(self) -> int:
        """See EventStorage.horizon."""
        return await self._number("horizon")

    async def head(self) -> int:
        """See EventStorage.head."""
        return await self._number("head")

    async def wait(self, position: int, *, timeout_s: float) -> bool:
        """See EventStorage.wait. All waiters of a process share one question every 20 ms."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            asked_at, allocated = self._allocated
            if time.monotonic() - asked_at >= POLL_S:
                self._allocated = (time.monotonic(), allocated)
                allocated = await self._number("allocated")
                self._allocated = (time.monotonic(), allocated)
            if allocated > position:
                return True
            await asyncio.sleep(POLL_S)
        return False

    async def _number(self, name: str) -> int:
        with translated():
            return cast(int, await self.pool.fetchval(_EVENTS[name]))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[StateTransaction]:
        """See StateStorage.transaction."""
        with translated():
            connection = await self.pool.acquire(timeout=10)
        try:
            with translated():
                transaction = connection.transaction()
                await transaction.start()
            try:
                yield PostgresTransaction(connection)
            except BaseException:
                await transaction.rollback()
                raise
            with translated():
                await transaction.commit()
        finally:
            await self.pool.release(connection)

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[bool]:
        """See StateStorage.lease. The session's advisory lock dies with its connection; letting go waits
        for the server, so that the next holder finds it free."""
        with translated():
            connection = await asyncpg.connect(
                self._url.set(drivername="postgresql").render_as_string(hide_password=False), timeout=10
            )
        try:
            with translated():
                ours = bool(await connection.fetchval(_STATES["try_lease"], name))
            yield ours
        finally:
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await connection.execute(_STATES["release_lease"], name, timeout=5)
            connection.terminate()


async def _use_canonical_json(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec(
        "json", schema="pg_catalog", format="binary", encoder=lambda encoded: encoded, decoder=decode
    )


def _row(new: NewEvent) -> tuple[Any, ...]:
    """The parameters of an insert, in the order of both statements."""
    event = new.event
    return (
        event.event_id,
        str(event.event_type),
        event.aggregate_id,
        event.aggregate_type,
        new.version,
        event.timestamp,
        event.correlation_id,
        event.causation_id,
        new.metadata,
        new.data,
    )


def _recorded(new: NewEvent, row: asyncpg.Record) -> RecordedEvent:
    fields = {name: getattr(new.event, name) for name in BaseEvent.model_fields}
    fields.update(row, data=decode(new.data), metadata=decode(new.metadata))
    return RecordedEvent.from_store(fields)


def _read_row(row: asyncpg.Record) -> RecordedEvent:
    fields = dict(row)
    fields["event_type"] = _TYPES.get(fields["event_type"], fields["event_type"])
    if fields["timestamp"].tzinfo is None:  # asyncpg keeps the first and the last moment as infinities
        fields["timestamp"] = fields["timestamp"].replace(tzinfo=UTC)
    return RecordedEvent.from_store(fields)
