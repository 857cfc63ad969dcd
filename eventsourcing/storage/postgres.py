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
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, cast
from uuid import UUID

import asyncpg
from sqlalchemy.engine import make_url

from eventsourcing.errors import CursorAheadError, UnavailableError
from eventsourcing.events import RecordedEvent
from eventsourcing.query import EventQuery
from eventsourcing.storage import time_blocks
from eventsourcing.storage.base import ChunkReceipt, NewEvent, StateTransaction, append_drafts
from eventsourcing.storage.fragments import has_index_of_its_own, is_timed, keyset_column, page
from eventsourcing.storage.kinds import EventKinds
from eventsourcing.storage.postgres_append import Appender
from eventsourcing.storage.postgres_errors import translated
from eventsourcing.storage.postgres_rows import in_utc, recorded_events, use_canonical_json
from eventsourcing.storage.postgres_states import PostgresTransaction
from eventsourcing.storage.schema import upgrade_if_empty
from eventsourcing.storage.statements import statements

if TYPE_CHECKING:
    from eventsourcing.columnar import EventChunk
    from eventsourcing.storage.postgres_frames import FrameCopier

POLL_S = 0.02
"""How often a waiting reader asks whether anything has been drawn."""

SESSION = {
    "plan_cache_mode": "force_generic_plan",
    "enable_sort": "off",
    "enable_bitmapscan": "off",
    "enable_seqscan": "off",
    "max_parallel_workers_per_gather": "0",
}
"""One plan for every page, whatever its values: walk the index that holds the order, and stop at the page's
end. A plan made for the values walks all positions in search of a type that only began late."""

_EVENTS = statements("events")
_STATES = statements("states")


class PostgresStorage:
    """Events in the table `events`, states in the table `states`."""

    def __init__(self, database_url: str, *, pool_size: int = 8, append_timeout_s: float = 30.0) -> None:
        self._url = make_url(database_url)
        self._pool_size = pool_size
        self._append_timeout_s = append_timeout_s
        self._pool: asyncpg.Pool | None = None
        self._appender: Appender | None = None
        self._copier: FrameCopier | None = None
        self._kinds = EventKinds()
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
                init=self._begin_session,
                command_timeout=60,
                timeout=10,
                reset=_keep_session,
                server_settings=SESSION,
            )

    async def _begin_session(self, connection: asyncpg.Connection) -> None:
        self._kinds.forget()
        await use_canonical_json(connection)

    async def close(self) -> None:
        """See EventStorage.close."""
        pool, self._pool, self._appender, self._copier = self._pool, None, None, None
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
        """See EventStorage.append."""
        await self._kinds.add(self.pool, {(new.event.aggregate_type, new.event.event_type) for new in events})
        self._appender = self._appender or Appender(self.pool, timeout_s=self._append_timeout_s)
        return await self._appender.append(events)

    async def append_chunk(self, chunk: EventChunk) -> ChunkReceipt:
        """See EventStorage.append_chunk."""
        from eventsourcing.storage.postgres_frames import FrameCopier  # loads polars

        await self._kinds.add(
            self.pool, set(chunk.frame.select("aggregate_type", "event_type").unique().rows())
        )
        self._copier = self._copier or FrameCopier(self.pool, timeout_s=self._append_timeout_s)
        return await self._copier.copy(chunk) or await append_drafts(self, chunk)

    async def read(self, query: EventQuery, *, batch_size: int) -> AsyncIterator[list[RecordedEvent]]:
        """See EventStorage.read. Each batch is one page by keyset; while one is used, the server looks for
        the next. No connection is held between pages."""
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
            async with aclosing(self._pages(part, batch_size, left)) as pages:
                async for events in pages:
                    left -= len(events)
                    yield events

    async def _parts(self, query: EventQuery) -> list[EventQuery]:
        """The query in parts by position, without those that its window of time cannot touch."""
        if not is_timed(query) or has_index_of_its_own(query):
            return [query]
        with translated():
            return await time_blocks.narrowed(self.pool, query, await self.horizon())

    async def _pages(
        self, query: EventQuery, batch_size: int, left: int
    ) -> AsyncGenerator[list[RecordedEvent], None]:
        size = min(batch_size, left)
        rows = await self._page(query, None, size) if size > 0 else []
        while rows:
            left -= len(rows)
            size = min(batch_size, left) if len(rows) == size else 0
            cursor = rows[-1][keyset_column(query)]
            upcoming = asyncio.create_task(self._page(query, cursor, size)) if size > 0 else None
            try:
                for batch in recorded_events(rows):
                    yield batch
                rows = await upcoming if upcoming else []
            finally:
                if upcoming:
                    upcoming.cancel()
                    await asyncio.gather(upcoming, return_exceptions=True)

    async def _page(self, query: EventQuery, cursor: int | None, size: int) -> list[asyncpg.Record]:
        sql, values = page(query, cursor=cursor, size=size)
        with translated():
            return cast("list[asyncpg.Record]", await self.pool.fetch(sql, *values))

    async def horizon(self) -> int:
        """See EventStorage.horizon."""
        return await self._number("horizon")

    async def head(self) -> int:
        """See EventStorage.head."""
        return await self._number("head")

    async def stored_ids(self, event_ids: Sequence[UUID]) -> set[UUID]:
        """See EventStorage.stored_ids."""
        with translated():
            rows = await self.pool.fetch(_EVENTS["stored_ids"], list(event_ids))
        return {row["event_id"] for row in rows}

    async def latest_timestamps(self, aggregate_ids: Sequence[str]) -> dict[str, datetime]:
        """See EventStorage.latest_timestamps."""
        with translated():
            rows = await self.pool.fetch(_EVENTS["latest_timestamps"], list(aggregate_ids))
        return {row["aggregate_id"]: in_utc(row["latest"]) for row in rows}

    async def last_versions(self, before: Mapping[str, int]) -> dict[str, dict[str, int]]:
        """See EventStorage.last_versions."""
        with translated():
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


async def _keep_session(connection: asyncpg.Connection) -> None:
    """Spare the round trip that resets a session: nothing here leaves anything set in one."""
