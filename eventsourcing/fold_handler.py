"""A durable fold as a handler: fed by a consumer group, each recorded event changes its state exactly once.

The state and the last version applied of each aggregate commit in one transaction, so that whatever a
transport repeats has no effect. A transport that keeps its own checkpoint in the states gives its
transaction, and both move together.
"""

from __future__ import annotations

from collections.abc import Sequence

from eventsourcing.events import BaseEvent, RecordedEvent
from eventsourcing.folds import Fold, State
from eventsourcing.handlers import EventHandler
from eventsourcing.storage.base import StateStorage, StateTable, StateTransaction

_SEPARATOR = "\x1f"


class FoldHandler(EventHandler):
    """Keeps a fold's states in the store."""

    def __init__(self, fold: Fold, storage: StateStorage) -> None:
        self._fold, self._storage = fold, storage
        self._states = StateTable(f"fold-handler.{fold.name}.v{fold.version}")
        self._applied = StateTable(f"{self._states.name}.applied")

    @property
    def name(self) -> str:
        return f"fold {self._fold.name}"

    def can_handle(self, event_type: str) -> bool:
        return self._fold.types is None or event_type in self._fold.types

    async def handle(self, event: BaseEvent) -> None:
        async with self._storage.transaction() as transaction:
            await self.apply(transaction, [event])

    async def apply(self, transaction: StateTransaction, events: Sequence[BaseEvent]) -> None:
        """Apply what was not applied before, in the caller's transaction. Drafts are always applied."""
        fresh = await advance(transaction, self._applied, "", events)
        keyed = [(key, event) for event in fresh if (key := self._fold.key(event)) is not None]
        if keyed:
            keys = list({key for key, _ in keyed})
            states = await transaction.claim(self._states, keys, self._fold.initial())
            for key, event in keyed:
                self._fold.apply(states[key], event)
            await transaction.put_many(self._states, states)

    async def state_of(self, key: str) -> State | None:
        """The state of one key; None when no event had it."""
        async with self._storage.transaction() as transaction:
            return await transaction.get(self._states, key)


async def advance(
    transaction: StateTransaction, table: StateTable, owner: str, events: Sequence[BaseEvent]
) -> list[BaseEvent]:
    """Move the owner's checkpoints, one an aggregate, past these events; return those above them.

    The checkpoints are locked until the transaction ends: two processes cannot both take an event. Drafts
    have no checkpoint and are returned.
    """
    recorded = [event for event in events if isinstance(event, RecordedEvent)]
    if not recorded:
        return list(events)
    keys = [checkpoint_key(owner, event.aggregate_id) for event in recorded]
    rows = await transaction.claim(table, keys, {"version": 0})
    fresh: list[BaseEvent] = []
    for event in events:
        row = rows.get(checkpoint_key(owner, event.aggregate_id))
        if not isinstance(event, RecordedEvent) or row is None:
            fresh.append(event)
        elif event.event_version > row["version"]:
            row["version"] = event.event_version
            fresh.append(event)
    await transaction.put_many(table, rows)
    return fresh


def checkpoint_key(owner: str, aggregate_id: str) -> str:
    """The key of an aggregate's checkpoint."""
    return f"{owner}{_SEPARATOR}{aggregate_id}"
