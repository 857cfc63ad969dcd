"""A generation: one durable run of a fold, its states in a table of their own.

States and checkpoint commit in one transaction, so each event is applied exactly once, whoever applies
it. A generation reads behind the horizon only, and only the types that concern its fold; what the fold
takes by number alone is counted in the database. One that was folded by another version of the fold can
be read and never goes on: its states are not what this code would make.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Self

from eventsourcing.errors import CursorAheadError
from eventsourcing.folds import Counted, DurableFold, State
from eventsourcing.query import EventQuery
from eventsourcing.storage.base import CHECKPOINTS, StateTable, StateTransaction, Storage
from eventsourcing.storage.tallies import Tally, TallyQuery
from eventsourcing.upcasting import VERSIONED

BATCH = 5_000
"""How many events one transaction applies at most."""

COUNTED = 250_000
"""How many positions one transaction counts at most."""


class Generation:
    """One run of a fold: `number` tells those of one read model apart, from 1."""

    def __init__(self, fold: DurableFold, number: int, fold_version: int) -> None:
        self.fold, self.number, self.fold_version = fold, number, fold_version
        name = f"{fold.name}.v{fold_version}"
        self.table = StateTable(name if number == 1 else f"{name}.{number}")
        self.checkpoint_key = f"read-model/{self.table.name}"

    @property
    def is_current(self) -> bool:
        """Whether this code's fold made it, and so can go on with it."""
        return self.fold_version == self.fold.version

    @property
    def tables(self) -> tuple[StateTable, ...]:
        """All that it keeps, for whoever removes it."""
        return (self.table,)

    async def position(self, storage: Storage) -> int:
        """Up to where events are applied; 0 before the first."""
        async with storage.transaction() as transaction:
            return await self.position_in(transaction)

    async def catch_up(self, storage: Storage) -> int:
        """Apply everything up to the horizon, batch by batch; return the position that is reached.

        Raises CursorAheadError when the checkpoint lies above the store's head.
        """
        horizon = await storage.horizon()
        done = await self.position(storage)
        if done > horizon and done > (head := await storage.head()):
            raise CursorAheadError(done, head)
        async with Filling(self, storage) as filling:
            while done < horizon:
                done = await filling.advance(done, horizon)
        return done

    async def batch(self, storage: Storage, done: int, upto: int) -> tuple[list[Tally], int]:
        """What is to be applied next behind `done`, and up to where it reaches."""
        plain, counted = self._split()
        upto = upto if counted is None else min(upto, done + COUNTED)
        tallies: list[Tally] = []
        if plain is not None:
            query = EventQuery(event_types=plain, after_position=done, to_position=upto, limit=BATCH)
            async for batch in storage.read(query, batch_size=BATCH):
                tallies += [Tally(event, 1) for event in batch]
            upto = tallies[-1].event.position if len(tallies) == BATCH else upto
        if counted is not None:
            tallies += await storage.tally(TallyQuery(done, upto, counted.types, counted.field))
        return tallies, upto

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

    async def apply(self, transaction: StateTransaction, tallies: Sequence[Tally], upto: int) -> None:
        """Apply what lies behind the checkpoint, which the caller has locked, and move it to `upto`."""
        keyed = [(key, tally) for tally in tallies if (key := self.fold.key(tally.event)) is not None]
        states = await transaction.get_many(self.table, list({key for key, _ in keyed})) if keyed else {}
        for key, (event, times) in keyed:
            state = states.get(key)
            if state is None:
                state = states[key] = self.fold.initial()
            self.fold.apply(state, event, times)
        if states:
            await transaction.put_many(self.table, states)
            await self.index(transaction, states)
        await transaction.put(CHECKPOINTS, self.checkpoint_key, {"position": upto})

    async def state_in(self, transaction: StateTransaction, key: str) -> State | None:
        """The state of one key; None when no event had it."""
        state: State | None = await transaction.get(self.table, key)
        return state

    async def position_in(self, transaction: StateTransaction, *, lock: bool = False) -> int:
        """Where the checkpoint stands; `lock` keeps it there until the transaction ends."""
        checkpoint: Any = await transaction.get(CHECKPOINTS, self.checkpoint_key, lock=lock)
        if checkpoint is None and lock:  # a row that is not there cannot be locked
            await transaction.add(CHECKPOINTS, self.checkpoint_key, {"position": 0})
            checkpoint = await transaction.get(CHECKPOINTS, self.checkpoint_key, lock=True)
        return checkpoint["position"] if checkpoint else 0

    async def index(self, transaction: StateTransaction, states: dict[str, State]) -> None:
        """Keep what finds states by another key; a plain fold needs nothing."""


class Filling:
    """Applies batch behind batch to a generation; the next one is read while one is applied and written."""

    def __init__(self, generation: Generation, storage: Storage) -> None:
        assert generation.is_current, "states of another version of the fold are only read"
        self._generation, self._storage = generation, storage
        self._ahead: tuple[int, asyncio.Task[tuple[list[Tally], int]]] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._drop()

    async def advance(self, done: int, upto: int) -> int:
        """Apply one batch behind `done`, up to a position at or below the horizon; return where the
        checkpoint stands, whoever moved it."""
        tallies, reached = await self._batch(done, upto)
        if reached < upto:
            following = self._generation.batch(self._storage, reached, upto)
            self._ahead = reached, asyncio.create_task(following)
        async with self._storage.transaction() as transaction:
            position = await self._generation.position_in(transaction, lock=True)
            if position == done:
                await self._generation.apply(transaction, tallies, reached)
        return reached if position == done else position

    async def _batch(self, done: int, upto: int) -> tuple[list[Tally], int]:
        """What was read ahead, unless another process moved the checkpoint elsewhere."""
        if self._ahead is not None and self._ahead[0] == done:
            (_, ahead), self._ahead = self._ahead, None
            return await ahead
        await self._drop()
        return await self._generation.batch(self._storage, done, upto)

    async def _drop(self) -> None:
        if self._ahead is not None:
            (_, ahead), self._ahead = self._ahead, None
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)
