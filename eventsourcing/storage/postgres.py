"""The storage on PostgreSQL, through asyncpg.

Appends take no global lock. Each holds a shared advisory lock keyed by the last position drawn before
its own (a trigger sees to it), and `horizon` stops readers below the smallest key held: whoever has
read up to the horizon never later finds an event at or below it. Within an aggregate, position order
is version order, for a version is resolved in a snapshot taken before its position is drawn.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast
from uuid import UUID

import asyncpg
from sqlalchemy.engine import make_url

from eventsourcing.errors import CursorAheadError, UnavailableError
from eventsourcing.events import RecordedEvent
from eventsourcing.metrics import count_appended
from eventsourcing.query import EventQuery
from eventsourcing.storage import time_blocks
from eventsourcing.storage.base import (
    LOST_POSITIONS,
    Appended,
    ChunkReceipt,
    NewEvent,
    StateTransaction,
    append_drafts,
)
from eventsourcing.storage.fragments import has_index_of_its_own, is_timed, keyset_column
from eventsourcing.storage.fragments import page as page_of
from eventsourcing.storage.group_commit import GroupCommit
from eventsourcing.storage.kinds import EventKinds
from eventsourcing.storage.postgres_append import Appender
from eventsourcing.storage.postgres_errors import DRIVER, translated
from eventsourcing.storage.postgres_leases import hold
from eventsourcing.storage.postgres_pool import ConnectionPool, dsn
from eventsourcing.storage.postgres_rows import in_utc, recorded_events
from eventsourcing.storage.postgres_states import PostgresTransaction
from eventsourcing.storage.postgres_tallies import count_in_database
from eventsourcing.storage.schema import require_schema
from eventsourcing.storage.settling import settled
from eventsourcing.storage.statements import statements
from eventsourcing.storage.tallies import Tally, TallyQuery

if TYPE_CHECKING:
    import polars as pl

    from eventsourcing.columnar import EventChunk
    from eventsourcing.storage.postgres_frames import FrameCopier

Page = TypeVar("Page", "list[asyncpg.Record]", "pl.DataFrame")
Fetch: TypeAlias = Callable[[EventQuery, int | None, int], Coroutine[Any, Any, Page]]
"""Finds one page of a query beyond a cursor (of `keyset_column`), of at most so many rows."""

POOL_WAIT_S = 10.0
"""How long a call waits for a connection while all are in use."""

POLL_S = 0.02
"""How often a waiting reader asks whether anything has been drawn."""

SESSION = {
    "plan_cache_mode": "force_generic_plan",
    "enable_sort": "off",
    "enable_bitmapscan": "off",
    "enable_seqscan": "off",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",  # up to PostgreSQL 17 a node set off costs 1e10, and each such statement would be compiled
}
"""One plan for every page, whatever its values: walk the index that holds the order, and stop at the page's
end. A plan made for the values walks all positions in search of a type that only began late."""

_EVENTS = statements("events")
_STATES = statements("states")


class PostgresStorage:
    """Events in the table `events`, states in the table `states`."""

    def __init__(
        self,
        database_url: str,
        *,
        pool_size: int = 8,
        append_timeout_s: float = 30.0,
        pool_wait_s: float = POOL_WAIT_S,
    ) -> None:
        self._url = make_url(database_url)
        self._pool_size, self._pool_wait_s = pool_size, pool_wait_s
        self._append_timeout_s = append_timeout_s
        self._pool: ConnectionPool | None = None
        self._appender: Appender | None = None
        self._copier: FrameCopier | None = None
        self._group_commit = GroupCommit(self._append, self._append_together)
        self._kinds = EventKinds()
        self._allocated = (0.0, 0)

    async def open(self) -> None:
        """See EventStorage.open."""
        if self._pool is not None:
            return
        with translated(sent=False):
            await require_schema(self._url)
        pool = ConnectionPool(
            self._url,
            size=self._pool_size,
            settings=SESSION,
            statement_timeout_s=self._append_timeout_s,
            wait_s=self._pool_wait_s,
            before_session=self._kinds.forget,
        )
        await pool.open()
        self._pool = pool

    async def close(self) -> None:
        """See EventStorage.close."""
        pool, self._pool, self._appender, self._copier = self._pool, None, None, None
        if pool is not None:
            await pool.close()

    @property
    def pool(self) -> ConnectionPool:
        """The open pool. Raises UnavailableError while the storage is closed."""
        if self._pool is None:
            raise UnavailableError("the storage is not open")
        return self._pool

    async def append(self, events: Sequence[NewEvent]) -> Appended:
        """See EventStorage.append. When the answer is lost, the event ids settle what became of it."""
        return await self._group_commit.append(events)

    async def _append(self, events: Sequence[NewEvent], lost: bool) -> Appended:
        async def attempt() -> Appended:
            await self._add_kinds(events)
            return await self._appending().append(events)

        appended = await settled(attempt, within_s=self._append_timeout_s, lost=lost)
        self.pool.saw(max(event.position for event in appended.events))
        return appended

    async def _append_together(self, events: Sequence[NewEvent]) -> list[RecordedEvent] | None:
        await self._add_kinds(events)
        appended = await self._appending().insert(events)
        if appended:
            self.pool.saw(max(event.position for event in appended))
        return appended

    def _appending(self) -> Appender:
        self._appender = self._appender or Appender(self.pool, timeout_s=self._append_timeout_s)
        return self._appender

    async def _add_kinds(self, events: Sequence[NewEvent]) -> None:
        kinds = {(new.event.aggregate_type, new.event.event_type) for new in events}
        await self._kinds.add(self.pool, kinds)

    async def append_chunk(
        self, chunk: EventChunk, *, on_placed: Callable[[], None] | None = None
    ) -> ChunkReceipt:
        """See EventStorage.append_chunk. A lost answer is settled as in `append`."""
        from eventsourcing.storage.postgres_frames import FrameCopier  # loads polars

        kinds = set(chunk.frame.select("aggregate_type", "event_type").unique().rows())
        self._copier = copier = self._copier or FrameCopier(self.pool, timeout_s=self._append_timeout_s)
        alone = self._pool_size == 1  # a chunk behind this one would wait for its connection

        async def attempt() -> ChunkReceipt:
            await self._kinds.add(self.pool, kinds)
            copied = await copier.copy(chunk, None if alone else on_placed)
            if copied is None:
                return await append_drafts(self, chunk)
            count_appended(dict(chunk.frame["event_type"].value_counts().iter_rows()))
            return copied

        receipt = await settled(attempt, within_s=self._append_timeout_s)
        self.pool.saw(receipt.last_position or 0)
        return receipt

    async def read(self, query: EventQuery, *, batch_size: int) -> AsyncIterator[list[RecordedEvent]]:
        """See EventStorage.read. Each batch is one page by keyset; while one is used, the server looks for
        the next. No connection is held between pages."""
        async with aclosing(self._read(query, batch_size, self._page)) as pages:
            async for rows in pages:
                for batch in recorded_events(rows):
                    yield batch

    async def read_frames(self, query: EventQuery, *, batch_size: int) -> AsyncIterator[pl.DataFrame]:
        """See EventStorage.read_frames. Pages as in `read`, each copied out as text."""
        from eventsourcing.event_columns import newest
        from eventsourcing.storage.postgres_columns import copied_page  # loads polars

        async with aclosing(self._read(query, batch_size, partial(copied_page, self.pool))) as pages:
            async for frame in pages:
                yield newest(frame)

    async def _read(self, query: EventQuery, batch_size: int, fetch: Fetch[Page]) -> AsyncGenerator[Page]:
        if query.after_position:
            head = await self.head()
            if query.after_position > head:
                raise CursorAheadError(query.after_position, head)
        if query.aggregate_types and not query.event_types:
            narrowed = await self._kinds.narrowed(self.pool, query)
            if narrowed is None:
                return
            query = narrowed
        left = sys.maxsize if query.limit is None else query.limit
        for part in await self._parts(query):
            async with aclosing(self._pages(part, batch_size, left, fetch)) as pages:
                async for page in pages:
                    left -= len(page)
                    yield page

    async def _parts(self, query: EventQuery) -> list[EventQuery]:
        """The query in parts by position, without those that its window of time cannot touch."""
        if not is_timed(query) or has_index_of_its_own(query):
            return [query]
        with translated():
            return await time_blocks.narrowed(self.pool, query, await self.horizon())

    async def _pages(
        self, query: EventQuery, batch_size: int, left: int, fetch: Fetch[Page]
    ) -> AsyncGenerator[Page]:
        size = min(batch_size, left)
        page = await fetch(query, None, size) if size > 0 else None
        while page is not None and len(page):
            left -= len(page)
            size = min(batch_size, left) if len(page) == size else 0
            upcoming = asyncio.create_task(fetch(query, _last(page, query), size)) if size > 0 else None
            try:
                yield page
                page = await upcoming if upcoming else None
            finally:
                if upcoming:
                    upcoming.cancel()
                    await asyncio.gather(upcoming, return_exceptions=True)

    async def _page(self, query: EventQuery, cursor: int | None, size: int) -> list[asyncpg.Record]:
        sql, values = page_of(query, cursor=cursor, size=size)
        return await self.pool.fetch(sql, *values)

    async def tally(self, query: TallyQuery) -> list[Tally]:
        """See EventStorage.tally."""
        return await count_in_database(self.pool, query)

    async def horizon(self) -> int:
        """See EventStorage.horizon."""
        horizon = await self._number("horizon")
        self.pool.saw(horizon)
        return horizon

    async def head(self) -> int:
        """See EventStorage.head."""
        head = await self._number("head", LOST_POSITIONS.name)
        self.pool.saw(head)
        return head

    async def oldest_append_s(self) -> float:
        """See EventStorage.oldest_append_s."""
        return cast(float, await self.pool.fetchval(_EVENTS["oldest_append"]))

    async def stored_ids(self, event_ids: Sequence[UUID]) -> set[UUID]:
        """See EventStorage.stored_ids."""
        rows = await self.pool.fetch(_EVENTS["stored_ids"], list(event_ids))
        return {row["event_id"] for row in rows}

    async def latest_timestamps(self, aggregate_ids: Sequence[str]) -> dict[str, datetime]:
        """See EventStorage.latest_timestamps."""
        rows = await self.pool.fetch(_EVENTS["latest_timestamps"], list(aggregate_ids))
        return {row["aggregate_id"]: in_utc(row["latest"]) for row in rows}

    async def last_versions(self, before: Mapping[str, int]) -> dict[str, dict[str, int]]:
        """See EventStorage.last_versions."""
        rows = await self.pool.fetch(_EVENTS["last_versions"], list(before), list(before.values()))
        found: dict[str, dict[str, int]] = {}
        for row in rows:
            found.setdefault(row["aggregate_id"], {})[row["event_type"]] = row["version"]
        return found

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

    async def _number(self, name: str, *values: str) -> int:
        return cast(int, await self.pool.fetchval(_EVENTS[name], *values))

    @asynccontextmanager
    async def transaction(self, *, snapshot: bool = False) -> AsyncIterator[StateTransaction]:
        """See StateStorage.transaction."""
        async with self.pool.acquire() as connection:
            with translated():
                transaction = connection.transaction(isolation="repeatable_read" if snapshot else None)
                await transaction.start()
            try:
                yield PostgresTransaction(connection)
            except BaseException:
                with suppress(*DRIVER):  # where the connection is gone, the server has undone it
                    await transaction.rollback()
                raise
            with translated():
                await transaction.commit()

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[bool]:
        """See StateStorage.lease."""
        async with hold(dsn(self._url), name) as ours:
            yield ours


def _last(page: Any, query: EventQuery) -> int:
    """The cursor behind a page."""
    column = keyset_column(query)
    return int(page[-1][column] if isinstance(page, list) else page[column][-1])
