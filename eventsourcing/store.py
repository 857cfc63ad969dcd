"""EventStore: the front of the event store, the same over every storage.

It initialises itself on first use. An append is atomic and idempotent by event_id; what it returns is
frozen and carries the assigned version and position. Lists show every committed event, the caller's
own included; whatever is read by position ends at the horizon, below which nothing can appear any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

from eventsourcing.config import EventStoreConfig, Settings
from eventsourcing.drafts import ANY, ExpectedVersion, prepare
from eventsourcing.errors import ConcurrencyError
from eventsourcing.events import BaseEvent, RecordedEvent
from eventsourcing.metrics import instruments, timed
from eventsourcing.query import EventQuery
from eventsourcing.readmodels import current_event_statistics
from eventsourcing.storage.base import Appended, Storage
from eventsourcing.storage.embedded import EmbeddedStorage
from eventsourcing.storage.memory import InMemoryStorage
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.tail import Slice, follow

if TYPE_CHECKING:
    import polars as pl

    from eventsourcing.backfill import BackfillManifest, Progress
    from eventsourcing.backfill_rows import Row
    from eventsourcing.frames import AppendManifest, Frames

READ_BATCH = 1000
FRAME_ROWS = 20_000


class EventStore:
    """An append-only store of events, on PostgreSQL or in memory."""

    def __init__(
        self,
        config: EventStoreConfig | None = None,
        *,
        use_memory: bool = False,
        storage: Storage | None = None,
    ) -> None:
        self._storage = storage or (
            InMemoryStorage() if use_memory else database_storage(config or EventStoreConfig())
        )
        self._opening = asyncio.Lock()
        self._is_open = False

    async def initialize(self) -> None:
        """Connect, and create the schema in an empty database; repeating it changes nothing.

        Raises SchemaError for another schema version, UnavailableError without a database.
        """
        if self._is_open:
            return
        async with self._opening:
            await self._storage.open()
            self._is_open = True

    async def close(self) -> None:
        """Release every connection. The store opens again on its next use."""
        self._is_open = False
        await self._storage.close()

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def storage(self) -> Storage:
        """The storage behind this front: its states hold what is derived from the events."""
        return self._storage

    async def append_event(
        self, event: BaseEvent, *, expected_version: ExpectedVersion = ANY
    ) -> RecordedEvent:
        """Append one event. See append_events."""
        return (await self.append_events([event], expected_version=expected_version))[0]

    async def append_events(
        self, events: Sequence[BaseEvent], *, expected_version: ExpectedVersion = ANY
    ) -> list[RecordedEvent]:
        """Append all events or none; return them as stored, in the order given.

        `expected_version` is the version that the aggregate must be at: a number, ANY, NO_STREAM, or
        a mapping by aggregate_id. An event stored before comes back unchanged.
        Raises InvalidEventError, ConcurrencyError, DuplicateEventError, UnavailableError; then
        nothing of the call is stored.
        """
        return (await self.append(events, expected_version=expected_version)).events

    async def append(
        self, events: Sequence[BaseEvent], *, expected_version: ExpectedVersion = ANY
    ) -> Appended:
        """Append as append_events does, and tell which events were stored before.

        Of several callers with one new event exactly one does not find it, unless the answer to it was
        lost.
        """
        ready = prepare(events, expected_version)
        if not ready:
            return Appended([], frozenset())
        await self.initialize()
        measured = instruments()
        try:
            with timed(measured.append_seconds):
                appended = await self._storage.append(ready)
        except ConcurrencyError:
            measured.conflicts.inc()
            raise
        if len(appended.events) == len(events):  # none came twice: they are in the order given
            return appended
        stored = {event.event_id: event for event in appended.events}
        return Appended([stored[event.event_id] for event in events], appended.found)

    async def append_frame(
        self,
        frames: Frames,
        *,
        name: str,
        started_at: datetime | None = None,
        chunk_rows: int = 10_000,
        on_chunk: Callable[[AppendManifest], None] | None = None,
    ) -> AppendManifest:
        """Append the rows of a frame, or of an iterable of frames, in chunks of which each is atomic.

        A frame is Polars' or anything that speaks Arrow's C interface; its columns are an event's
        (columnar). Rows without an event_id get one from `name`, `started_at` (the first call's) and
        their number. Repeating the call under the same name with the same rows appends what is
        missing. `on_chunk` is told after each chunk. An iterable keeps memory flat.
        Raises InvalidEventError naming the column and the row, ConcurrencyError, DuplicateEventError,
        UnavailableError; chunks before it stay stored, one behind it may be, and the call can be repeated.
        """
        from eventsourcing.frames import append_frame  # loads polars, which only frames need

        await self.initialize()
        return await append_frame(
            self._storage,
            frames,
            name=name,
            started_at=started_at,
            chunk_rows=chunk_rows,
            on_chunk=on_chunk,
        )

    async def backfill(
        self,
        source: Iterable[Row] | Any,
        *,
        name: str,
        merge: bool = False,
        zone: tzinfo | None = None,
        on_progress: Progress | None = None,
    ) -> BackfillManifest:
        """Append events from before there was this store, each at the date when it happened.

        `source` is drafts, mappings of their fields, or a frame (Polars, Arrow) with such columns; rows
        that are no drafts must be of registered types and fit their payloads. Versions follow from the
        dates, and among equal ones from the order given. Calling it again under the same name appends
        what is missing, and nothing else. `zone` is that of dates that name none; a draft's are in UTC.

        Raises BackfillRefusedError, with nothing appended, naming the rows: a date that is missing, has
        no zone or lies in the future, a row that is no event, and an aggregate in which later events are
        stored unless `merge` says to append behind them; DuplicateEventError, with nothing appended, for
        an event_id that names another stored event. Raises UnavailableError when the store is lost
        on the way; whole chunks are appended then, and the same call completes them.
        """
        from eventsourcing.backfill import backfill  # loads polars

        await self.initialize()
        return await backfill(self, source, name=name, merge=merge, zone=zone, on_progress=on_progress)

    async def read(self, query: EventQuery, *, batch_size: int = READ_BATCH) -> AsyncIterator[RecordedEvent]:
        """Stream the committed events of a query, in its order."""
        async for batch in self.read_batches(query, batch_size=batch_size):
            for event in batch:
                yield event

    async def read_batches(
        self, query: EventQuery, *, batch_size: int = READ_BATCH
    ) -> AsyncIterator[list[RecordedEvent]]:
        """Stream the committed events of a query in non-empty batches, in its order.

        Raises CursorAheadError when `after_position` lies above the store's head.
        """
        if batch_size < 1:
            raise ValueError("batch_size must be at least 1")
        await self.initialize()
        async for batch in self._storage.read(query, batch_size=batch_size):
            yield batch

    async def read_frames(
        self, query: EventQuery, *, batch_size: int = FRAME_ROWS
    ) -> AsyncIterator[pl.DataFrame]:
        """Stream the committed events of a query, in its order, as Polars frames of their columns
        (event_columns): many times the speed of `read` where millions are folded. Raises what it raises.
        """
        if batch_size < 1:
            raise ValueError("batch_size must be at least 1")
        await self.initialize()
        async for frame in self._storage.read_frames(query, batch_size=batch_size):
            yield frame

    async def follow(
        self, query: EventQuery | None = None, *, after: int = 0, batch_size: int = 500
    ) -> AsyncIterator[Slice]:
        """Read from a position to the horizon and then live, for ever. See tail.follow."""
        await self.initialize()
        async for piece in follow(self._storage, query or EventQuery(), after=after, batch_size=batch_size):
            yield piece

    async def horizon(self) -> int:
        """The position up to which nothing can appear any more; 0 in an empty store."""
        await self.initialize()
        return await self._storage.horizon()

    async def get_events(
        self, aggregate_id: str, from_version: int | None = None, to_version: int | None = None
    ) -> list[RecordedEvent]:
        """The events of one aggregate in version order; empty when it has none. Bounds are inclusive."""
        return await self._list(
            EventQuery(aggregate_id=aggregate_id, from_version=from_version, to_version=to_version)
        )

    async def get_events_by_type(
        self,
        event_types: str | Iterable[str],
        from_timestamp: datetime | None = None,
        to_timestamp: datetime | None = None,
        limit: int | None = None,
    ) -> list[RecordedEvent]:
        """The events of one or several types in position order; time bounds are inclusive."""
        types = (event_types,) if isinstance(event_types, str) else tuple(event_types)
        if not types:
            return []
        return await self._list(
            EventQuery(
                event_types=types, from_timestamp=from_timestamp, to_timestamp=to_timestamp, limit=limit
            )
        )

    async def get_events_by_correlation_id(self, correlation_id: UUID) -> list[RecordedEvent]:
        """The events that carry a correlation, in position order."""
        return await self._list(EventQuery(correlation_id=correlation_id))

    async def get_all_events(
        self,
        from_timestamp: datetime | None = None,
        to_timestamp: datetime | None = None,
        after_position: int | None = None,
        batch_size: int = READ_BATCH,
    ) -> AsyncIterator[RecordedEvent]:
        """Stream all events up to the horizon of the call, in position order.

        Who has read up to a position never later finds an event at or below it. Raises
        CursorAheadError when `after_position` lies above the store's head.
        """
        query = EventQuery(
            from_timestamp=from_timestamp,
            to_timestamp=to_timestamp,
            after_position=after_position,
            to_position=await self.horizon(),
        )
        async for event in self.read(query, batch_size=batch_size):
            yield event

    async def get_event(self, event_id: UUID) -> RecordedEvent | None:
        """The event with this id, or None."""
        found = await self._list(EventQuery(event_id=event_id))
        return found[0] if found else None

    async def get_event_stats(self) -> dict[str, Any]:
        """Count what is stored: total_events, events_by_type, events_by_aggregate_type,
        latest_event_timestamp (RFC 3339, None in an empty store).

        A fold behind the horizon plus the tail after it: constant time once it has caught up, and
        the caller's own events are counted.
        """
        await self.initialize()
        return await current_event_statistics(self._storage)

    async def _list(self, query: EventQuery) -> list[RecordedEvent]:
        return [event async for event in self.read(query)]


def database_storage(config: EventStoreConfig, data_dir: Path | None = None) -> Storage:
    """The storage of a configuration: the database it names, else the embedded one of a data directory."""
    if config.database_url is not None:
        return PostgresStorage(
            config.database_url, pool_size=config.pool_size, append_timeout_s=config.append_timeout_s
        )
    return EmbeddedStorage(
        data_dir or Settings.load().data_dir,
        pool_size=config.pool_size,
        append_timeout_s=config.append_timeout_s,
    )
