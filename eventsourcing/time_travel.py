"""Time travel: what a read model said at a position, or what it says of the events up to a moment.

Nothing is stored for it: the fold runs over the events again, and only over the types that concern it. A
page of states keeps in memory the states of that page alone: what lies beyond its last key is dropped as
soon as the page is full below it.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from eventsourcing.events import RecordedEvent
from eventsourcing.folds import State
from eventsourcing.query import EventQuery
from eventsourcing.readmodels import MIGRATION_STATISTICS_MODEL, ReadModel
from eventsourcing.statistics import is_migration, links, merge, split_key
from eventsourcing.storage.base import Storage

READ = 5_000


@dataclass(frozen=True, slots=True)
class AsOf:
    """Up to where the events count, inclusive: a position, a moment at which they happened, or both."""

    position: int | None = None
    moment: datetime | None = None


async def state_as_of(storage: Storage, model: ReadModel, key: str, when: AsOf) -> State | None:
    """The state of one key; None when it had none. Of the migrations' statistics the key is a migration's
    id, and the state what its statistics say."""
    if model is MIGRATION_STATISTICS_MODEL:
        return await _statistics_as_of(storage, key, when) or None
    state: State | None = None
    async for event in _events(storage, model, when):
        if model.fold.key(event) == key:
            state = model.fold.initial() if state is None else state
            model.fold.apply(state, event)
    return state


async def states_as_of(
    storage: Storage, model: ReadModel, when: AsOf, *, after: str = "", limit: int = 100
) -> list[tuple[str, State]]:
    """The first states beyond the key `after`, in byte order of their keys. Costs a run over all events."""
    first = after.encode()
    states: dict[bytes, State] = {}
    order: list[bytes] = []
    async for event in _events(storage, model, when):
        key = (model.fold.key(event) or "").encode()
        if key <= first or (len(order) == limit and key > order[-1]):
            continue
        if key not in states:
            insort(order, key)
            states[key] = model.fold.initial()
            if len(order) > limit:
                del states[order.pop()]
        model.fold.apply(states[key], event)
    return [(key.decode(), states[key]) for key in order]


async def _statistics_as_of(storage: Storage, migration_id: str, when: AsOf) -> dict[str, Any]:
    """The merged parts of one migration: first its own, then those that these link to."""
    own = await _parts(storage, when, subjects={migration_id}, correlations=set())
    if not is_migration(own.values()):
        return {}
    linked = await _parts(storage, when, subjects={migration_id}, correlations=links(own.values()))
    return merge(linked.values())


async def _parts(
    storage: Storage, when: AsOf, *, subjects: set[str], correlations: set[str]
) -> dict[str, State]:
    fold = MIGRATION_STATISTICS_MODEL.fold
    parts: dict[str, State] = {}
    async for event in _events(storage, MIGRATION_STATISTICS_MODEL, when):
        key = fold.key(event)
        if key is None:
            continue
        subject, correlation = split_key(key)
        if subject in subjects or correlation in correlations:
            fold.apply(parts.setdefault(key, fold.initial()), event)
    return parts


async def _events(storage: Storage, model: ReadModel, when: AsOf) -> AsyncIterator[RecordedEvent]:
    """What concerns the fold up to then, and never beyond the horizon. Raises UpcastError."""
    horizon = await storage.horizon()
    query = EventQuery(
        event_types=tuple(sorted(model.fold.types or ())),
        to_position=horizon if when.position is None else min(horizon, when.position),
        to_timestamp=when.moment,
    )
    async for batch in storage.read(query, batch_size=READ):
        for event in batch:
            yield event
