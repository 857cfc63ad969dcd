"""Read models: durable folds that are read under a name, whichever generation of them is live.

A read model has one live generation, which everybody reads, and at most one beside it: one that is being
rebuilt, or the one that was live before. Which is which stands in one row. A reader looks at that row and
at the states in one snapshot, so a switch is seen whole or not at all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypedDict

from eventsourcing.errors import NotFoundError
from eventsourcing.folds import ADMIN_MIGRATIONS, EVENT_STATISTICS, USER_MIGRATIONS, DurableFold, State
from eventsourcing.generations import Generation
from eventsourcing.statistics import (
    MIGRATION_STATISTICS,
    SEPARATOR,
    is_migration,
    links,
    merge,
    split_key,
)
from eventsourcing.storage.base import StateTable, StateTransaction, Storage
from eventsourcing.storage.tallies import TallyQuery

READ_MODEL_ROWS = StateTable("read-models")
"""Key: the name of the read model. Value: Row."""

FEW = 10_000
"""How many events a call for the statistics counts at most where a read model keeps up or callers ask."""

MAX_POSITION = 2**63 - 1


class Row(TypedDict):
    """Which generations a read model has. `live` and `beside`: {number, fold_version, state, …}, where the
    state of `live` is "live"; `next` numbers the next one; `refused` is the fold version that an operator
    switched away from, which no worker takes up again by itself."""

    live: dict[str, Any]
    beside: dict[str, Any] | None
    next: int
    refused: int | None


class ReadModel:
    """The durable form of one fold, under the fold's name."""

    generation_type: type[Generation] = Generation

    def __init__(self, fold: DurableFold) -> None:
        self.fold, self.name = fold, fold.name
        self.first = self.generation_type(fold, 1, fold.version)
        self.lease = f"read-model/{fold.name}"

    @property
    def table(self) -> StateTable:
        """The states of the generation that an installation begins with."""
        return self.first.table

    def generation(self, place: dict[str, Any]) -> Generation:
        """The generation that a row's `live` or `beside` names."""
        return self.generation_type(self.fold, place["number"], place["fold_version"])

    async def row(self, transaction: StateTransaction, *, lock: bool = False) -> Row:
        """Which generations there are; in a new installation the first one alone. `lock` writes that down
        and keeps others from changing it until the transaction ends."""
        found: Row | None = await transaction.get(READ_MODEL_ROWS, self.name, lock=lock)
        if found is None:
            first = {"number": 1, "fold_version": self.fold.version, "state": "live"}
            found = Row(live=first, beside=None, next=2, refused=None)
            if lock and not await transaction.add(READ_MODEL_ROWS, self.name, found):
                found = await transaction.get(READ_MODEL_ROWS, self.name, lock=True)
                assert found is not None, "somebody else has just written it"
        return found

    async def live_in(self, transaction: StateTransaction) -> Generation:
        """The generation that is read now."""
        return self.generation((await self.row(transaction))["live"])

    async def live(self, storage: Storage) -> Generation:
        """The generation that is read now; from the first use on it is written down which that is."""
        async with storage.transaction() as transaction:
            if await transaction.get(READ_MODEL_ROWS, self.name) is None:
                await self.row(transaction, lock=True)
            return await self.live_in(transaction)

    async def position(self, storage: Storage) -> int:
        """Up to where events are applied in what is read; 0 before the first."""
        async with storage.transaction(snapshot=True) as transaction:
            return await (await self.live_in(transaction)).position_in(transaction)

    async def catch_up(self, storage: Storage) -> int:
        """Apply everything up to the horizon, batch by batch; return the position that is reached.

        A live generation of another version of the fold stays where it is: what this code makes of the
        events is rebuilt beside it (rebuilds). Raises CursorAheadError when the checkpoint lies above
        the store's head.
        """
        live = await self.live(storage)
        return await live.catch_up(storage) if live.is_current else await live.position(storage)

    @asynccontextmanager
    async def reading(self, storage: Storage) -> AsyncIterator[tuple[StateTransaction, Generation]]:
        """The live generation and a transaction that sees it as it is at this moment."""
        async with storage.transaction(snapshot=True) as transaction:
            yield transaction, await self.live_in(transaction)

    async def page(
        self, storage: Storage, *, after: str | None = None, limit: int = 1000
    ) -> list[tuple[str, State]]:
        """The next states beyond a key, in byte order of their keys."""
        async with self.reading(storage) as (transaction, live):
            return await transaction.scan(live.table, after=after, limit=limit)


class StatisticsGeneration(Generation):
    """Parts of migrations' statistics, found by subject and by correlation."""

    @property
    def by_correlation(self) -> StateTable:
        """Key: correlation, separator, subject. The values mean nothing."""
        return StateTable(f"{self.table.name}.by-correlation")

    @property
    def tables(self) -> tuple[StateTable, ...]:
        return self.table, self.by_correlation

    async def index(self, transaction: StateTransaction, states: dict[str, State]) -> None:
        pairs = [split_key(key) for key in states]
        entries: dict[str, State] = {
            f"{correlation}{SEPARATOR}{subject}": {} for subject, correlation in pairs if correlation
        }
        if entries:
            await transaction.put_many(self.by_correlation, entries)


class MigrationStatistics(ReadModel):
    """The durable statistics of migrations."""

    generation_type = StatisticsGeneration

    def __init__(self) -> None:
        super().__init__(MIGRATION_STATISTICS)

    async def stats(self, storage: Storage, migration_id: str) -> dict[str, Any]:
        """One migration's statistics; {} for an unknown id."""
        async with self.reading(storage) as (transaction, live):
            return await _stats(transaction, live, migration_id)

    async def all_stats(self, storage: Storage) -> dict[str, dict[str, Any]]:
        """The statistics of every migration, by id."""
        found: dict[str, dict[str, Any]] = {}
        async with self.reading(storage) as (transaction, live):
            async for subject in _subjects(transaction, live.table):
                stats = await _stats(transaction, live, subject)
                if stats:
                    found[subject] = stats
        return found


async def _stats(transaction: StateTransaction, live: Generation, migration_id: str) -> dict[str, Any]:
    assert isinstance(live, StatisticsGeneration), "the statistics have generations of their own"
    own = dict(await _scan_all(transaction, live.table, migration_id + SEPARATOR))
    if not is_migration(own.values()):
        return {}
    for link in links(own.values()):
        found = await _scan_all(transaction, live.by_correlation, link + SEPARATOR)
        keys = [f"{split_key(key)[1]}{SEPARATOR}{link}" for key, _ in found]
        own.update(await transaction.get_many(live.table, keys))
    return merge(own.values())


async def _subjects(transaction: StateTransaction, table: StateTable) -> AsyncIterator[str]:
    """Every subject once, skipping from one to the next."""
    after: str | None = None
    while rows := await transaction.scan(table, after=after, limit=1):
        subject, _ = split_key(rows[0][0])
        after = subject + SEPARATOR + "\U0010ffff"
        if subject:
            yield subject


async def _scan_all(transaction: StateTransaction, table: StateTable, prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    after: str | None = None
    while rows := await transaction.scan(table, prefix=prefix, after=after):
        found += rows
        after = rows[-1][0]
    return found


EVENT_STATISTICS_MODEL = ReadModel(EVENT_STATISTICS)
USER_MIGRATIONS_MODEL = ReadModel(USER_MIGRATIONS)
ADMIN_MIGRATIONS_MODEL = ReadModel(ADMIN_MIGRATIONS)
MIGRATION_STATISTICS_MODEL = MigrationStatistics()

READ_MODELS: tuple[ReadModel, ...] = (
    EVENT_STATISTICS_MODEL,
    MIGRATION_STATISTICS_MODEL,
    USER_MIGRATIONS_MODEL,
    ADMIN_MIGRATIONS_MODEL,
)
"""What a worker keeps up to date."""


def read_model(name: str, models: Iterable[ReadModel] = READ_MODELS) -> ReadModel:
    """The read model of a name. Raises NotFoundError."""
    for model in models:
        if model.name == name:
            return model
    raise NotFoundError("read model", name)


async def current_event_statistics(storage: Storage) -> dict[str, Any]:
    """The event statistics as of now: the fold up to its checkpoint, then what was committed since.

    A checkpoint far behind is moved first, so that what is counted at each call stays small. Raises
    CursorAheadError when it lies above the store's head.
    """
    position, state = await _event_statistics(storage)
    if not 0 <= await storage.head() - position <= FEW:
        await EVENT_STATISTICS_MODEL.catch_up(storage)
        position, state = await _event_statistics(storage)
    for event, times in await storage.tally(TallyQuery(position, MAX_POSITION)):
        EVENT_STATISTICS.apply(state, event, times)
    return state


async def _event_statistics(storage: Storage) -> tuple[int, State]:
    """The state of the statistics, and up to where it is complete: from nothing where another version of
    the fold made what is stored."""
    async with EVENT_STATISTICS_MODEL.reading(storage) as (transaction, live):
        if live.is_current:
            state = await live.state_in(transaction, "all")
            return await live.position_in(transaction), state or EVENT_STATISTICS.initial()
    return 0, EVENT_STATISTICS.initial()
