"""Durable folds: states and checkpoint commit in one transaction, so each event is applied exactly once.

A read model reads behind the horizon only, and only the types that concern its fold; what the fold takes
by number alone is counted in the database. Its states stand in a table of its own named after the fold
and its version; a fold with a new version starts empty beside the old one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from eventsourcing.errors import CursorAheadError
from eventsourcing.folds import (
    ADMIN_MIGRATIONS,
    EVENT_STATISTICS,
    USER_MIGRATIONS,
    Counted,
    DurableFold,
    State,
)
from eventsourcing.query import EventQuery
from eventsourcing.statistics import (
    MIGRATION_STATISTICS,
    SEPARATOR,
    is_migration,
    links,
    merge,
    split_key,
)
from eventsourcing.storage.base import CHECKPOINTS, StateTable, StateTransaction, Storage
from eventsourcing.storage.tallies import Tally, TallyQuery
from eventsourcing.upcasting import VERSIONED

BATCH = 5_000
"""How many events one transaction applies at most."""

COUNTED = 250_000
"""How many positions one transaction counts at most."""

FEW = 10_000
"""How many events a call for the statistics counts at most where a read model keeps up or callers ask."""

MAX_POSITION = 2**63 - 1

REST_S = 0.02
"""How long a read model that keeps up lets events gather."""


class ReadModel:
    """The durable form of one fold."""

    def __init__(self, fold: DurableFold) -> None:
        self.fold = fold
        self.table = StateTable(f"{fold.name}.v{fold.version}")
        self.checkpoint_key = f"read-model/{self.table.name}"

    async def position(self, storage: Storage) -> int:
        """Up to where events are applied; 0 before the first."""
        async with storage.transaction() as transaction:
            return await self._position(transaction)

    async def keep_up(self, storage: Storage) -> None:
        """Apply what is stored and what comes, until cancelled."""
        pause = REST_S
        while True:
            before = await self.position(storage)
            position = await self.catch_up(storage)
            pause = REST_S if position > before else min(pause * 2, 0.25)
            if await storage.wait(position, timeout_s=1.0):
                await asyncio.sleep(pause)  # longer while what was drawn is not committed

    async def catch_up(self, storage: Storage) -> int:
        """Apply everything up to the horizon, batch by batch; return the position that is reached.

        Raises CursorAheadError when the checkpoint lies above the store's head.
        """
        horizon = await storage.horizon()
        done = await self.position(storage)
        if done > horizon and done > (head := await storage.head()):
            raise CursorAheadError(done, head)
        while done < horizon:
            done = await self._advance(storage, done, horizon)
        return done

    async def _advance(self, storage: Storage, done: int, horizon: int) -> int:
        """Apply one batch behind the checkpoint; return where the checkpoint stands, whoever moved it."""
        plain, counted = self._split()
        upto = horizon if counted is None else min(horizon, done + COUNTED)
        tallies: list[Tally] = []
        if plain is not None:
            query = EventQuery(event_types=plain, after_position=done, to_position=upto, limit=BATCH)
            async for batch in storage.read(query, batch_size=BATCH):
                tallies += [Tally(event, 1) for event in batch]
            upto = tallies[-1].event.position if len(tallies) == BATCH else upto
        if counted is not None:
            tallies += await storage.tally(TallyQuery(done, upto, counted.types, counted.field))
        return await self._apply(storage, tallies, done, upto)

    def _split(self) -> tuple[tuple[str, ...] | None, Counted | None]:
        """What to read one by one (None: nothing, (): everything), and what to count.

        A payload with several versions is read: its fields show only after the upcast.
        """
        types, counted = self.fold.types, self.fold.counted
        if counted is not None and counted.types is None:
            return None, counted
        if types is None or counted is None or counted.types is None:
            return tuple(sorted(types or ())), None
        apart = counted.types if counted.field is None else counted.types - VERSIONED
        return tuple(sorted(types - apart)) or None, Counted(apart, counted.field) if apart else None

    async def _apply(self, storage: Storage, tallies: Sequence[Tally], done: int, upto: int) -> int:
        """Apply what lies above `done` and move the checkpoint to `upto`; both, or neither when another
        process moved it meanwhile. Return where it stands."""
        async with storage.transaction() as transaction:
            position = await self._position(transaction, lock=True)
            if position != done:
                return position
            keyed = [(key, tally) for tally in tallies if (key := self.fold.key(tally.event)) is not None]
            states = await transaction.get_many(self.table, list({key for key, _ in keyed})) if keyed else {}
            for key, (event, times) in keyed:
                state = states.get(key)
                if state is None:
                    state = states[key] = self.fold.initial()
                self.fold.apply(state, event, times)
            if states:
                await transaction.put_many(self.table, states)
                await self._index(transaction, states)
            await transaction.put(CHECKPOINTS, self.checkpoint_key, {"position": upto})
            return upto

    async def state_at(self, storage: Storage, key: str) -> tuple[int, State]:
        """The state of one key, and the position up to which it is complete."""
        async with storage.transaction() as transaction:
            position = await self._position(transaction, lock=True)  # so that no batch commits in between
            return position, await transaction.get(self.table, key) or self.fold.initial()

    async def _position(self, transaction: StateTransaction, *, lock: bool = False) -> int:
        checkpoint = await transaction.get(CHECKPOINTS, self.checkpoint_key, lock=lock)
        if checkpoint is None and lock:  # a row that is not there cannot be locked
            await transaction.add(CHECKPOINTS, self.checkpoint_key, {"position": 0})
            checkpoint = await transaction.get(CHECKPOINTS, self.checkpoint_key, lock=True)
        return checkpoint["position"] if checkpoint else 0

    async def _index(self, transaction: StateTransaction, states: dict[str, State]) -> None:
        """Keep what finds states by another key; a plain fold needs nothing."""


class MigrationStatistics(ReadModel):
    """The durable statistics of migrations; parts are found by subject and by correlation."""

    def __init__(self) -> None:
        super().__init__(MIGRATION_STATISTICS)
        self._by_correlation = StateTable(f"{self.table.name}.by-correlation")

    async def stats(self, storage: Storage, migration_id: str) -> dict[str, Any]:
        """One migration's statistics; {} for an unknown id."""
        async with storage.transaction() as transaction:
            return await self._stats(transaction, migration_id)

    async def all_stats(self, storage: Storage) -> dict[str, dict[str, Any]]:
        """The statistics of every migration, by id."""
        found: dict[str, dict[str, Any]] = {}
        async with storage.transaction() as transaction:
            async for subject in _subjects(transaction, self.table):
                stats = await self._stats(transaction, subject)
                if stats:
                    found[subject] = stats
        return found

    async def _stats(self, transaction: StateTransaction, migration_id: str) -> dict[str, Any]:
        own = dict(await _scan_all(transaction, self.table, migration_id + SEPARATOR))
        if not is_migration(own.values()):
            return {}
        for link in links(own.values()):
            found = await _scan_all(transaction, self._by_correlation, link + SEPARATOR)
            keys = [f"{split_key(key)[1]}{SEPARATOR}{link}" for key, _ in found]
            own.update(await transaction.get_many(self.table, keys))
        return merge(own.values())

    async def _index(self, transaction: StateTransaction, states: dict[str, State]) -> None:
        pairs = [split_key(key) for key in states]
        entries: dict[str, State] = {
            f"{correlation}{SEPARATOR}{subject}": {} for subject, correlation in pairs if correlation
        }
        if entries:
            await transaction.put_many(self._by_correlation, entries)


async def _subjects(transaction: StateTransaction, table: StateTable) -> Any:
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


async def current_event_statistics(storage: Storage) -> dict[str, Any]:
    """The event statistics as of now: the fold up to its checkpoint, then what was committed since.

    A checkpoint far behind is moved first, so that what is counted at each call stays small. Raises
    CursorAheadError when it lies above the store's head.
    """
    position, state = await EVENT_STATISTICS_MODEL.state_at(storage, "all")
    if not 0 <= await storage.head() - position <= FEW:
        await EVENT_STATISTICS_MODEL.catch_up(storage)
        position, state = await EVENT_STATISTICS_MODEL.state_at(storage, "all")
    for event, times in await storage.tally(TallyQuery(position, MAX_POSITION)):
        EVENT_STATISTICS.apply(state, event, times)
    return state
