"""Shadows: what a replay makes of the events, in tables of its own beside every live view.

A handler that is made of pure folds is replayed by its shadow. The states that changed commit together
with the replay's checkpoint, so a killed replay goes on from exactly there, and its memory is that of the
events between two checkpoints, however many states there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from eventsourcing.canonical import comparable, decode, encode
from eventsourcing.differences import DIFFERENCES, Difference, compare, forget, rows_of
from eventsourcing.errors import PermanentError
from eventsourcing.events import BaseEvent
from eventsourcing.folds import Fold, State
from eventsourcing.generations import Generation
from eventsourcing.handlers import EventHandler
from eventsourcing.readmodels import READ_MODELS, ReadModel
from eventsourcing.storage.base import CHECKPOINTS, StateTable, StateTransaction, Storage, purge_all

SHADOWS = StateTable("replay-shadows")
"""Key: a replay that has shadows. Value: {tables}, the names of their tables and checkpoints."""

CACHED = 20_000
"""How many states stay in memory behind a checkpoint, for the events to come."""

_TRIES = 10
_DIFFERENCES_OF_REPLAYS = "replay/"


class Shadow(EventHandler):
    """The twin of a handler, for one replay. Feed it batches: `prepare`, `handle` each, `flush` at times."""

    restorable = True

    def __init__(self, handler: EventHandler, replay_id: str, storage: Storage) -> None:
        self._handler, self._replay_id, self._storage = handler, replay_id, storage
        self._folds = handler.folds()
        self._states: dict[str, dict[str, State]] = {fold.name: {} for fold in self._folds}
        self._changed: dict[str, set[str]] = {fold.name: set() for fold in self._folds}
        self._last: list[tuple[str, str, bytes | None]] = []

    @property
    def name(self) -> str:
        return self._handler.name

    @property
    def state_version(self) -> str:
        return self._handler.state_version

    def can_handle(self, event_type: str) -> bool:
        return self._handler.can_handle(event_type)

    def restore(self, state: dict[str, Any]) -> None:
        for fold in self._folds:
            self._states[fold.name] = state.get(fold.name, {})
            self._changed[fold.name] = set(self._states[fold.name])

    async def prepare(self, events: Sequence[BaseEvent]) -> None:
        """Fetch the states that these events will change."""
        wanted: dict[Fold, list[str]] = {}
        for fold in self._folds:
            concerned = {key for event in events if (key := fold.key(event)) is not None}
            missing = concerned - self._states[fold.name].keys()
            if missing:
                wanted[fold] = list(missing)
        if wanted:
            async with self._storage.transaction() as transaction:
                for fold, keys in wanted.items():
                    self._states[fold.name] |= await transaction.get_many(self._table(fold), keys)

    async def handle(self, event: BaseEvent) -> None:
        """Apply the event to every fold, or to none: a fold that raises will raise again."""
        self._last = []
        try:
            for fold in self._folds:
                key = fold.key(event)
                if key is None:
                    continue
                states = self._states[fold.name]
                state = states.get(key)
                self._last.append((fold.name, key, encode(state) if state is not None else None))
                if state is None:
                    state = states[key] = fold.initial()
                fold.apply(state, event)
                self._changed[fold.name].add(key)
        except Exception as error:
            self.undo()
            raise PermanentError(f"{type(error).__name__}: {error}") from error

    def undo(self) -> None:
        """Take back the last event handled."""
        for name, key, before in reversed(self._last):
            if before is None:
                del self._states[name][key]
                self._changed[name].discard(key)
            else:
                self._states[name][key] = decode(before)
        self._last = []

    async def flush(self, transaction: StateTransaction) -> None:
        """Write what changed, in the transaction that moves the checkpoint."""
        for fold in self._folds:
            states = self._states[fold.name]
            changed = {key: states[key] for key in self._changed[fold.name] if key in states}
            if changed:
                await transaction.put_many(self._table(fold), changed)

    def flushed(self) -> None:
        """Forget what is written: called once the transaction is committed."""
        for name, states in self._states.items():
            self._changed[name].clear()
            if len(states) > CACHED:
                states.clear()
        self._last = []

    async def state_hash(self) -> str:
        """The hash of all that is flushed: what canonical.state_hash says of the handler's own state()."""
        digest = hashlib.sha256(b"{")
        for place, fold in enumerate(sorted(self._folds, key=lambda fold: fold.name)):
            digest.update((b"," if place else b"") + comparable(fold.name) + b":{")
            async with self._storage.transaction(snapshot=True) as transaction:
                between = b""
                async for key, state in rows_of(transaction, self._table(fold)):
                    digest.update(between + comparable(key) + b":" + comparable(state))
                    between = b","
            digest.update(b"}")
        digest.update(b"}")
        return digest.hexdigest()

    async def differences(self, horizon: int) -> dict[str, Difference]:
        """What the live read models are against what is flushed, complete up to `horizon`: by their names.

        A read model that another version of the fold made is left out. What the live one went ahead by
        is folded into the shadow first, which is then no longer what its hash says.
        """
        found: dict[str, Difference] = {}
        for fold in self._folds:
            for model in READ_MODELS:
                if model.fold is fold and (difference := await self._difference(model, horizon)) is not None:
                    found[fold.name] = difference
        return found

    async def _difference(self, model: ReadModel, horizon: int) -> Difference | None:
        shadow = _ShadowGeneration(model, self._key(model.fold))
        subject = shadow.table.name
        for _ in range(_TRIES):
            await forget(self._storage, subject)
            if await model.catch_up(self._storage) < horizon:
                return None
            async with self._storage.transaction(snapshot=True) as transaction:
                live = await model.live_in(transaction)
                upto = await live.position_in(transaction)
                done = max(horizon, await shadow.position_in(transaction))
                while live.is_current and done < upto:
                    tallies, done = await shadow.batch(self._storage, done, upto)
                    await shadow.apply(transaction, tallies, done)
                if live.is_current and done == upto:
                    rows = rows_of(transaction, live.table), rows_of(transaction, shadow.table)
                    return await compare(transaction, subject, *rows, position=upto)
        return None

    @property
    def tables(self) -> list[str]:
        """The names of its tables, which are those of their checkpoints too."""
        return [self._key(fold) for fold in self._folds]

    def _key(self, fold: Fold) -> str:
        return difference_subject(self._replay_id, self.name, fold.name)

    def _table(self, fold: Fold) -> StateTable:
        return StateTable(self._key(fold))


async def announce_shadows(storage: Storage, replay_id: str, shadows: Sequence[Shadow]) -> None:
    """Write down which tables a replay will have, before it has them."""
    tables = [name for shadow in shadows for name in shadow.tables]
    async with storage.transaction() as transaction:
        await transaction.put(SHADOWS, replay_id, {"tables": tables})


async def shadowed_replays(storage: Storage) -> list[str]:
    """The replays that have shadows, at most a thousand."""
    async with storage.transaction() as transaction:
        return [replay_id for replay_id, _ in await transaction.scan(SHADOWS)]


async def remove_shadows(storage: Storage, replay_id: str) -> None:
    """Remove the states of a replay's shadows; what a crash leaves of them goes when this is repeated."""
    async with storage.transaction() as transaction:
        row = await transaction.get(SHADOWS, replay_id) or {"tables": []}
        for name in row["tables"]:
            await transaction.delete(CHECKPOINTS, name)
    for name in row["tables"]:
        await purge_all(storage, StateTable(name))
    async with storage.transaction() as transaction:
        await transaction.delete(SHADOWS, replay_id)


async def forget_differences(storage: Storage, *, older_than: timedelta) -> int:
    """Remove the rows by which replays differed so long ago; return how many. Their counts stay."""
    return await purge_all(
        storage, DIFFERENCES, prefix=_DIFFERENCES_OF_REPLAYS, older_than_s=older_than.total_seconds()
    )


class _ShadowGeneration(Generation):
    """A shadow's states of one fold, as the read model would keep them."""

    def __init__(self, model: ReadModel, key: str) -> None:
        super().__init__(model.fold, 0, model.fold.version)
        self.table, self.checkpoint_key = StateTable(key), key


def difference_subject(replay_id: str, handler: str, fold: str) -> str:
    """Under which subject the differing rows of a replay are kept."""
    return f"{_DIFFERENCES_OF_REPLAYS}{replay_id}/{handler}/{fold}"
