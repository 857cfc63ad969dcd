"""The storage in memory: the same guarantees within one event loop, and nothing survives the process.

Appends run without an await, so each is atomic and every position at or below the head is visible.
State transactions run one at a time.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventsourcing.canonical import decode, encode
from eventsourcing.errors import ConcurrencyError, CursorAheadError, StateForbidsError, UpcastError
from eventsourcing.events import BaseEvent, RecordedEvent
from eventsourcing.metrics import count_appended
from eventsourcing.query import EventQuery
from eventsourcing.storage.base import (
    APPEND_ONLY_KEPT,
    Appended,
    ChunkReceipt,
    NewEvent,
    StateTable,
    StateTransaction,
    append_drafts,
    settle_duplicate,
)

if TYPE_CHECKING:
    import polars as pl

    from eventsourcing.columnar import EventChunk
from eventsourcing.storage.tallies import Tally, TallyQuery, count_in_memory


class InMemoryStorage:
    """Events in a list, states in dictionaries."""

    def __init__(self) -> None:
        self._events: list[RecordedEvent] = []
        self._by_id: dict[UUID, RecordedEvent] = {}
        self._streams: dict[str, list[RecordedEvent]] = defaultdict(list)
        self._appended = asyncio.Event()
        self._states: dict[str, dict[str, bytes]] = defaultdict(dict)
        self._changed: dict[str, dict[str, float]] = defaultdict(dict)
        self._state_lock = asyncio.Lock()
        self._leases: set[str] = set()

    async def open(self) -> None:
        """Do nothing: there is nothing to connect to."""

    async def close(self) -> None:
        """Keep everything: the same storage may be opened again."""

    async def append(self, events: Sequence[NewEvent]) -> Appended:
        """See EventStorage.append."""
        settled = {
            new.event.event_id: settle_duplicate(new, self._by_id[new.event.event_id])
            for new in events
            if new.event.event_id in self._by_id
        }
        found = frozenset(settled)
        versions: dict[str, int] = {}
        fresh: list[RecordedEvent] = []
        for new in events:
            event = new.event
            if event.event_id in settled:
                continue
            head = versions.get(event.aggregate_id, len(self._streams.get(event.aggregate_id, ())))
            if new.version not in (0, head + 1):
                actual = len(self._streams.get(event.aggregate_id, ()))
                raise ConcurrencyError(event.aggregate_id, expected=new.version - 1, actual=actual)
            versions[event.aggregate_id] = head + 1
            fresh.append(self._record(new, version=head + 1, position=len(self._events) + len(fresh) + 1))
        count_appended(Counter(event.event_type for event in settled.values()), "found")
        count_appended(Counter(event.event_type for event in fresh))
        for recorded in fresh:
            settled[recorded.event_id] = self._by_id[recorded.event_id] = recorded
            self._events.append(recorded)
            self._streams[recorded.aggregate_id].append(recorded)
        if fresh:
            self._appended.set()
            self._appended = asyncio.Event()
        return Appended([_detached(settled[new.event.event_id]) for new in events], found)

    async def append_chunk(
        self, chunk: EventChunk, *, on_placed: Callable[[], None] | None = None
    ) -> ChunkReceipt:
        """See EventStorage.append_chunk."""
        receipt = await append_drafts(self, chunk)
        if on_placed is not None:
            on_placed()
        return receipt

    @staticmethod
    def _record(new: NewEvent, *, version: int, position: int) -> RecordedEvent:
        fields = {name: getattr(new.event, name) for name in BaseEvent.model_fields}
        fields.update(
            event_version=version,
            data=decode(new.data),
            metadata=decode(new.metadata),
            position=position,
            recorded_at=datetime.now(UTC),
        )
        return RecordedEvent.from_store(fields)

    async def read(self, query: EventQuery, *, batch_size: int) -> AsyncIterator[list[RecordedEvent]]:
        """See EventStorage.read."""
        if query.after_position is not None and query.after_position > len(self._events):
            raise CursorAheadError(query.after_position, len(self._events))
        source = self._events if query.aggregate_id is None else self._streams.get(query.aggregate_id, [])
        first = bisect_right(source, query.after_position or 0, key=lambda event: event.position)
        places = range(first, len(source))
        batch: list[RecordedEvent] = []
        taken = 0
        for place in reversed(places) if query.backwards else places:
            if query.limit is not None and taken >= query.limit:
                break
            if query.matches(source[place]):
                try:
                    batch.append(_detached(source[place]))
                except UpcastError:
                    if batch:
                        yield batch
                    raise
                taken += 1
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    async def read_frames(self, query: EventQuery, *, batch_size: int) -> AsyncIterator[pl.DataFrame]:
        """See EventStorage.read_frames."""
        from eventsourcing.event_columns import frame_of  # loads polars

        async for events in self.read(query, batch_size=batch_size):
            yield frame_of(events)

    async def tally(self, query: TallyQuery) -> list[Tally]:
        """See EventStorage.tally. Positions are places in the list, from 1."""
        return count_in_memory(self._events[query.after : query.to], query)

    async def horizon(self) -> int:
        """See EventStorage.horizon."""
        return len(self._events)

    async def head(self) -> int:
        """See EventStorage.head."""
        return len(self._events)

    async def oldest_append_s(self) -> float:
        """See EventStorage.oldest_append_s. Appends here are over before anyone else runs."""
        return 0.0

    async def stored_ids(self, event_ids: Sequence[UUID]) -> set[UUID]:
        """See EventStorage.stored_ids."""
        return {event_id for event_id in event_ids if event_id in self._by_id}

    async def latest_timestamps(self, aggregate_ids: Sequence[str]) -> dict[str, datetime]:
        """See EventStorage.latest_timestamps."""
        streams = {aggregate_id: self._streams.get(aggregate_id) for aggregate_id in aggregate_ids}
        return {key: max(event.timestamp for event in found) for key, found in streams.items() if found}

    async def last_versions(self, before: Mapping[str, int]) -> dict[str, dict[str, int]]:
        """See EventStorage.last_versions."""
        found = {
            aggregate_id: {
                str(event.event_type): event.event_version
                for event in self._streams.get(aggregate_id, [])[: version - 1]
            }
            for aggregate_id, version in before.items()
        }
        return {aggregate_id: versions for aggregate_id, versions in found.items() if versions}

    async def wait(self, position: int, *, timeout_s: float) -> bool:
        """See EventStorage.wait."""
        if len(self._events) > position:
            return True
        try:
            async with asyncio.timeout(timeout_s):  # wait_for can swallow a cancellation before Python 3.12
                return await self._appended.wait()
        except TimeoutError:
            return False

    @asynccontextmanager
    async def transaction(self, *, snapshot: bool = False) -> AsyncIterator[StateTransaction]:  # noqa: ARG002 - one at a time
        """See StateStorage.transaction."""
        async with self._state_lock:
            transaction = _InMemoryTransaction(self._states, self._changed)
            yield transaction
            transaction.commit()

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[bool]:
        """See StateStorage.lease."""
        ours = name not in self._leases
        self._leases.add(name)
        try:
            yield ours
        finally:
            if ours:
                self._leases.discard(name)


_KEPT_S = APPEND_ONLY_KEPT.total_seconds()


class _InMemoryTransaction:
    """Changes laid over the states until commit; None marks a deleted key."""

    def __init__(self, states: dict[str, dict[str, bytes]], changed: dict[str, dict[str, float]]) -> None:
        self._states, self._changed = states, changed
        self._changes: dict[str, dict[str, bytes | None]] = defaultdict(dict)

    def commit(self) -> None:
        for table, changes in self._changes.items():
            for key, value in changes.items():
                if value is None:
                    self._states[table].pop(key, None)
                    self._changed[table].pop(key, None)
                else:
                    self._states[table][key] = value
                    self._changed[table][key] = time.monotonic()

    async def get(self, table: StateTable, key: str, *, lock: bool = False) -> Any | None:  # noqa: ARG002 - one at a time
        stored = self._stored(table, key)
        return None if stored is None else decode(stored)

    async def put(self, table: StateTable, key: str, value: Any) -> None:
        if table.append_only and self._has(table, key):
            raise StateForbidsError("stored row", key, "never changed")
        self._changes[table.name][key] = encode(value)

    async def get_many(self, table: StateTable, keys: Sequence[str]) -> dict[str, Any]:
        return {key: await self.get(table, key) for key in keys if self._has(table, key)}

    async def put_many(self, table: StateTable, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            await self.put(table, key, value)

    async def add(self, table: StateTable, key: str, value: Any) -> bool:
        if self._has(table, key):
            return False
        await self.put(table, key, value)
        return True

    async def claim(self, table: StateTable, keys: Sequence[str], initial: Any) -> dict[str, Any]:
        for key in keys:
            await self.add(table, key, initial)
        return await self.get_many(table, keys)

    async def delete(self, table: StateTable, key: str) -> None:
        if table.append_only and self._has(table, key) and self._age_s(table, key) < _KEPT_S:
            raise StateForbidsError("stored row", key, "never changed")
        self._changes[table.name][key] = None

    def _age_s(self, table: StateTable, key: str) -> float:
        changed = self._changed[table.name].get(key)
        return 0.0 if changed is None else time.monotonic() - changed

    def _stored(self, table: StateTable, key: str) -> bytes | None:
        changes = self._changes[table.name]
        return changes[key] if key in changes else self._states[table.name].get(key)

    def _has(self, table: StateTable, key: str) -> bool:
        return self._stored(table, key) is not None

    async def scan(
        self,
        table: StateTable,
        *,
        prefix: str = "",
        after: str | None = None,
        limit: int = 1000,
        backwards: bool = False,
    ) -> list[tuple[str, Any]]:
        keys = self._keys(table, prefix)
        if after is not None:
            start = after.encode()
            keys = [key for key in keys if (key.encode() < start if backwards else key.encode() > start)]
        if backwards:
            keys.reverse()
        return [(key, decode(self._stored(table, key) or b"null")) for key in keys[:limit]]

    async def count(self, table: StateTable, *, prefix: str = "") -> int:
        return len(self._keys(table, prefix))

    async def delete_many(self, table: StateTable, keys: Sequence[str]) -> None:
        for key in keys:
            await self.delete(table, key)

    async def purge(
        self, table: StateTable, *, prefix: str = "", older_than_s: float | None = None, limit: int = 1000
    ) -> int:
        keys = self._keys(table, prefix)
        if older_than_s is not None:
            changed, fresh, latest = self._changed[table.name], self._changes[table.name], time.monotonic()
            keys = [key for key in keys if key not in fresh and latest - changed[key] > older_than_s]
        await self.delete_many(table, keys[:limit])
        return len(keys[:limit])

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        before = {table: dict(changes) for table, changes in self._changes.items()}
        try:
            yield
        except BaseException:
            self._changes = defaultdict(dict, before)
            raise

    def _keys(self, table: StateTable, prefix: str) -> list[str]:
        """The keys that begin with a prefix, in byte order."""
        merged = {**self._states[table.name], **self._changes[table.name]}
        found = (key for key, value in merged.items() if value is not None and key.startswith(prefix))
        return sorted(found, key=str.encode)


def _detached(event: RecordedEvent) -> RecordedEvent:
    """A copy whose payload a reader may change without changing the store."""
    fields = {
        **event.__dict__,
        "data": decode(encode(event.data)),
        "metadata": decode(encode(event.metadata)),
    }
    return RecordedEvent.from_store(fields)
