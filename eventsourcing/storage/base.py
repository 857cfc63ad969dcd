"""The contract of a storage: an append-only log of events, and keyed states beside it.

`EventStorage` keeps events: atomic appends, versions without a gap, positions that a reader can trust.
`StateStorage` keeps everything derived: a read model, its checkpoint and a dead letter commit together.
Every backend implements both; nothing outside this folder asks which one it is on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from uuid import UUID

from eventsourcing.canonical import comparable, decode
from eventsourcing.errors import DuplicateEventError
from eventsourcing.events import RESERVED_METADATA, BaseEvent, RecordedEvent
from eventsourcing.query import EventQuery
from eventsourcing.storage.tallies import Tally, TallyQuery

if TYPE_CHECKING:
    import polars as pl  # loaded where frames are used

    from eventsourcing.columnar import EventChunk


class NewEvent(NamedTuple):
    """A draft made ready: encoded, measured, with the version it must have (0: the next one)."""

    event: BaseEvent
    version: int
    data: bytes
    metadata: bytes


class Appended(NamedTuple):
    """What became of an append: its events in the order given, and the ids of those stored before it."""

    events: list[RecordedEvent]
    found: frozenset[UUID]


class ChunkReceipt(NamedTuple):
    """What became of a chunk: events appended, events found stored, and the appended ones' positions."""

    appended: int
    found: int
    first_position: int | None
    last_position: int | None


class EventStorage(Protocol):
    """An append-only log of events."""

    async def open(self) -> None:
        """Connect, and create the schema in an empty database. Repeating it changes nothing.

        Raises SchemaError for an older or newer schema, UnavailableError without a database.
        """

    async def close(self) -> None:
        """Release every connection; a closed storage may be opened again."""

    async def append(self, events: Sequence[NewEvent]) -> Appended:
        """Store all events or none, and return them in the order given.

        An event whose event_id is stored comes back as stored and is found; this is checked before any
        version. Of several calls with one new id exactly one does not find it, unless its answer was lost.
        Event ids are unique within the call. Raises ConcurrencyError, DuplicateEventError,
        UnavailableError; then nothing of the call is stored.
        """

    async def append_chunk(
        self, chunk: EventChunk, *, on_placed: Callable[[], None] | None = None
    ) -> ChunkReceipt:
        """Store all rows or none, in their order. Raises what `append` raises.

        `on_placed` is called once the rows have their places, at the latest when they are stored: a chunk
        that begins then is written at the same time and comes behind them. It shares no aggregate with
        them, for should this one have to begin again, it comes behind that one.
        """

    def read(self, query: EventQuery, *, batch_size: int) -> AsyncIterator[list[RecordedEvent]]:
        """Stream what is committed and matches, in non-empty batches of at most `batch_size`.

        Raises CursorAheadError when `after_position` lies above the head, UpcastError once all before
        an event that cannot be read is given.
        """

    def read_frames(self, query: EventQuery, *, batch_size: int) -> AsyncIterator[pl.DataFrame]:
        """Stream what `read` streams, in the same order, as frames (event_columns). Raises the same."""

    async def tally(self, query: TallyQuery) -> list[Tally]:
        """Count what is committed and matches, in one look, by what the query tells apart."""

    async def horizon(self) -> int:
        """The position up to which nothing can appear any more; 0 in an empty store."""

    async def head(self) -> int:
        """The highest committed position; 0 in an empty store."""

    async def oldest_append_s(self) -> float:
        """The age in seconds of the oldest append still open, which holds the horizon back; 0 without one."""

    async def stored_ids(self, event_ids: Sequence[UUID]) -> set[UUID]:
        """Those of these ids that name a stored event."""

    async def latest_timestamps(self, aggregate_ids: Sequence[str]) -> dict[str, datetime]:
        """The latest timestamp among the events of each of these aggregates that has events."""

    async def last_versions(self, before: Mapping[str, int]) -> dict[str, dict[str, int]]:
        """For each aggregate, the last version of every event type below the version given.

        An aggregate without such events is left out.
        """

    async def wait(self, position: int, *, timeout_s: float) -> bool:
        """Return True once events above `position` may have been appended, False after the timeout."""


@dataclass(frozen=True, slots=True)
class StateTable:
    """A declared table of states: text keys in byte order, JSON values.

    Of an append-only one a stored key is never set again, nor removed within APPEND_ONLY_KEPT: a storage
    raises StateForbidsError, and nothing of the transaction is done.
    """

    name: str
    append_only: bool = False


APPEND_ONLY_KEPT = timedelta(days=28)
"""For how long nobody can remove a key of an append-only table; PostgreSQL has it in schema_0004.sql."""


CHECKPOINTS = StateTable("checkpoints")
"""How far each consumer has come: {position} by its key. No position here lies above the head."""

LOST_POSITIONS = StateTable("lost-positions")
"""Positions that a store handed out before it was restored to an earlier state, as {first, last, …}."""


class StateTransaction(Protocol):
    """Reads and writes of states that commit together."""

    async def get(self, table: StateTable, key: str, *, lock: bool = False) -> Any | None:
        """The value of a key, or None. `lock` keeps other transactions from changing it until the end."""

    async def put(self, table: StateTable, key: str, value: Any) -> None:
        """Set the value of a key."""

    async def get_many(self, table: StateTable, keys: Sequence[str]) -> dict[str, Any]:
        """The values of those keys that exist."""

    async def put_many(self, table: StateTable, values: Mapping[str, Any]) -> None:
        """Set the values of many keys."""

    async def add(self, table: StateTable, key: str, value: Any) -> bool:
        """Set the value of a new key; False, and nothing changed, when the key exists."""

    async def claim(self, table: StateTable, keys: Sequence[str], initial: Any) -> dict[str, Any]:
        """The values of keys, kept from other transactions until the end; new ones are set to `initial`."""

    async def delete(self, table: StateTable, key: str) -> None:
        """Remove a key; a key that is not there is none."""

    async def scan(
        self,
        table: StateTable,
        *,
        prefix: str = "",
        after: str | None = None,
        limit: int = 1000,
        backwards: bool = False,
    ) -> list[tuple[str, Any]]:
        """The next keys that begin with `prefix`, in byte order, beyond `after` in the direction read."""

    async def count(self, table: StateTable, *, prefix: str = "") -> int:
        """How many keys begin with `prefix`: how deep a group's dead letters are. Costs a look at each."""

    async def delete_many(self, table: StateTable, keys: Sequence[str]) -> None:
        """Remove keys, as dead letters that were re-driven together; those not there are none."""

    async def purge(
        self, table: StateTable, *, prefix: str = "", older_than_s: float | None = None, limit: int = 1000
    ) -> int:
        """Remove the first keys that begin with `prefix`, at most `limit`; return how many they were.

        `older_than_s` spares those set within so many seconds, by the storage's clock: an idempotency
        key lives for a day. Fewer than `limit` means that no more were to go. See `purge_all`.
        """

    def savepoint(self) -> AbstractAsyncContextManager[None]:
        """A part of the transaction that can be undone alone, as one event of a batch.

        An exception that leaves it undoes what was done in it, and passes on; whoever catches it goes
        on with the transaction as it was before. May be nested.
        """


class StateStorage(Protocol):
    """Keyed states with transactions, and leases that one process holds at a time."""

    def transaction(self, *, snapshot: bool = False) -> AbstractAsyncContextManager[StateTransaction]:
        """A transaction: committed on a clean exit, undone on an exception.

        With `snapshot` all its reads see the states of one moment, whatever commits meanwhile; what it
        changes must be its own. Without it each read sees what is committed by then.
        """

    def lease(self, name: str) -> AbstractAsyncContextManager[bool]:
        """Try to become the one holder of a name; True when it is ours. Dies with the process."""


class Storage(EventStorage, StateStorage, Protocol):
    """What a backend implements."""


async def purge_all(
    storage: StateStorage,
    table: StateTable,
    *,
    prefix: str = "",
    older_than_s: float | None = None,
    batch: int = 1000,
) -> int:
    """Purge a table in batches, each a transaction of its own; return how many keys went.

    For what a switched read model leaves behind, and for keys past their time: no long transaction, and
    what went before a crash stays gone.
    """
    gone = 0
    while True:
        async with storage.transaction() as transaction:
            count = await transaction.purge(table, prefix=prefix, older_than_s=older_than_s, limit=batch)
        gone += count
        if count < batch:
            return gone


def settle_duplicate(new: NewEvent, stored: RecordedEvent) -> RecordedEvent:
    """The stored event as all read it, when the caller's event says the same; else DuplicateEventError.

    `stored` is the event as it was stored; the caller's payload may be that one or the newest version
    of it. Only what the caller set is compared, in canonical JSON: a defaulted timestamp, defaulted
    payload moments, version 0 and reserved metadata may differ.
    """
    event = new.event
    given = event.model_fields_set
    for name in (
        "event_type",
        "aggregate_id",
        "aggregate_type",
        "correlation_id",
        "causation_id",
        "timestamp",
    ):
        if name in given and getattr(event, name) != getattr(stored, name):
            raise DuplicateEventError(event.event_id, field=name)
    if event.event_version and event.event_version != stored.event_version:
        raise DuplicateEventError(event.event_id, field="event_version")
    newest = RecordedEvent.from_store(dict(vars(stored)))
    if "data" in given and all(
        _differ(decode(new.data), payload, event.defaulted_payload) for payload in (newest.data, stored.data)
    ):
        raise DuplicateEventError(event.event_id, field="data")
    if "metadata" in given and _differ(decode(new.metadata), stored.metadata, RESERVED_METADATA):
        raise DuplicateEventError(event.event_id, field="metadata")
    return newest


def _differ(given: dict[str, Any], stored: dict[str, Any], ignored: frozenset[str]) -> bool:
    mine = {key: value for key, value in given.items() if key not in ignored}
    theirs = {key: value for key, value in stored.items() if key not in ignored}
    return comparable(mine) != comparable(theirs)


async def append_drafts(storage: EventStorage, chunk: EventChunk) -> ChunkReceipt:
    """Append a chunk event by event: what every storage can do, and what settles events stored before."""
    events, found = await storage.append(chunk.drafts())
    positions = [event.position for event in events if event.event_id not in found]
    return ChunkReceipt(
        len(positions), len(found), min(positions, default=None), max(positions, default=None)
    )
