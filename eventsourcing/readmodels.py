"""Durable folds: states and checkpoint commit in one transaction, so each event is applied exactly once.

A read model reads behind the horizon only. Its states stand in a table of its own named after the
fold and its version; a fold with a new version starts empty beside the old one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eventsourcing.events import RecordedEvent
from eventsourcing.folds import ADMIN_MIGRATIONS, EVENT_STATISTICS, USER_MIGRATIONS, Fold, State
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

BATCH = 1000


class ReadModel:
    """The durable form of one fold."""

    def __init__(self, fold: Fold) -> None:
        self.fold = fold
        self.table = StateTable(f"{fold.name}.v{fold.version}")
        self.checkpoint_key = f"read-model/{self.table.name}"

    async def position(self, storage: Storage) -> int:
        """Up to where events are applied; 0 before the first."""
        async with storage.transaction() as transaction:
            return await self._position(transaction)

    async def apply(self, storage: Storage, events: Sequence[RecordedEvent], *, position: int) -> None:
        """Apply the events above the checkpoint and move it to `position`, or do neither.

        `events` are all that the fold cares about up to `position`. Applying them twice changes nothing.
        """
        async with storage.transaction() as transaction:
            await transaction.add(CHECKPOINTS, self.checkpoint_key, {"position": 0})
            done = await self._position(transaction, lock=True)
            if position <= done:
                return
            keyed = [
                (key, event)
                for event in events
                if event.position > done and (key := self.fold.key(event)) is not None
            ]
            states = await transaction.get_many(self.table, list({key for key, _ in keyed})) if keyed else {}
            for key, event in keyed:
                self.fold.apply(states.setdefault(key, self.fold.initial()), event)
            if states:
                await transaction.put_many(self.table, states)
                await self._index(transaction, states)
            await transaction.put(CHECKPOINTS, self.checkpoint_key, {"position": position})

    async def catch_up(self, storage: Storage) -> int:
        """Apply everything up to the horizon; return it."""
        horizon = await storage.horizon()
        done = await self.position(storage)
        if horizon > done:
            window = EventQuery(after_position=done, to_position=horizon)
            async for batch in storage.read(window, batch_size=BATCH):
                await self.apply(storage, batch, position=batch[-1].position)
            await self.apply(storage, [], position=horizon)
        return max(horizon, done)

    async def state_at(self, storage: Storage, key: str) -> tuple[int, State]:
        """The state of one key, and the position up to which it is complete."""
        async with storage.transaction() as transaction:
            await transaction.add(CHECKPOINTS, self.checkpoint_key, {"position": 0})
            position = await self._position(transaction, lock=True)  # so that no batch commits in between
            return position, await transaction.get(self.table, key) or self.fold.initial()

    async def _position(self, transaction: StateTransaction, *, lock: bool = False) -> int:
        checkpoint = await transaction.get(CHECKPOINTS, self.checkpoint_key, lock=lock)
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
    """The event statistics as of now: the fold behind the horizon, then the tail after it."""
    await EVENT_STATISTICS_MODEL.catch_up(storage)
    position, state = await EVENT_STATISTICS_MODEL.state_at(storage, "all")
    async for batch in storage.read(EventQuery(after_position=position), batch_size=BATCH):
        for event in batch:
            EVENT_STATISTICS.apply(state, event)
    return state
