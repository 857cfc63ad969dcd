"""Snapshots: the state of one aggregate at a version, stored, with the hash of the state.

A migration's snapshot folds the events linked to it, up to the position of the last version taken;
a user's or an admin's is the record's view; any other aggregate's is what the handlers made of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from eventsourcing.errors import NotFoundError
from eventsourcing.events import EventType, RecordedEvent
from eventsourcing.folds import ADMIN_MIGRATIONS, USER_MIGRATIONS, State
from eventsourcing.handlers import EventHandler
from eventsourcing.query import EventQuery
from eventsourcing.statistics import MIGRATION_STATISTICS, links, merge
from eventsourcing.storage.base import StateTable, Storage
from eventsourcing.store import EventStore

SNAPSHOTS = StateTable("snapshots")
"""Key: aggregate_id, separator, version in ten digits."""

_NAMING_TYPES = (
    EventType.ROLLBACK_INITIATED,
    EventType.ROLLBACK_COMPLETED,
    EventType.USER_ROLLED_BACK,
    EventType.ADMIN_ROLLED_BACK,
)
"""Types whose payload names the migration, so that they belong to it without a correlation."""


@dataclass(frozen=True, slots=True)
class FoldedAggregate:
    """What an aggregate's events came to. `events` counts everything folded."""

    state: State
    version: int
    position: int
    events: int
    fold_version: int


async def fold_aggregate(
    store: EventStore, aggregate_id: str, up_to_version: int | None, handlers: Sequence[EventHandler]
) -> FoldedAggregate:
    """Fold one aggregate up to a version. Raises NotFoundError when that leaves no events."""
    query = EventQuery(aggregate_id=aggregate_id, to_version=up_to_version)
    own = [event async for event in store.read(query)]
    if not own:
        raise NotFoundError("aggregate", aggregate_id)
    position = own[-1].position if up_to_version is not None else max(await store.horizon(), own[-1].position)
    kind = {event.aggregate_type for event in own}
    count = len(own)
    if "migration" in kind:
        state, count = await _migration_state(store, aggregate_id, own, position)
        fold_version = MIGRATION_STATISTICS.version
    elif kind & {"user", "admin"}:
        fold = USER_MIGRATIONS if "user" in kind else ADMIN_MIGRATIONS
        state, fold_version = fold.initial(), fold.version
        for event in own:
            if fold.key(event) is not None:
                fold.apply(state, event)
    else:
        state, fold_version = await _handler_states(own, handlers), 1
    return FoldedAggregate(state, own[-1].event_version, position, count, fold_version)


async def _migration_state(
    store: EventStore, migration_id: str, own: Sequence[RecordedEvent], position: int
) -> tuple[State, int]:
    parts: dict[str, State] = {}
    count = 0

    def fold(event: RecordedEvent) -> None:
        nonlocal count
        count += 1
        key = MIGRATION_STATISTICS.key(event)
        if key is not None:
            MIGRATION_STATISTICS.apply(parts.setdefault(key, MIGRATION_STATISTICS.initial()), event)

    for event in own:
        fold(event)
    correlations = {UUID(link) for link in links(parts.values())}
    async for event in _linked(store, migration_id, correlations, position):
        fold(event)
    return merge(parts.values()), count


async def _linked(
    store: EventStore, migration_id: str, correlations: set[UUID], position: int
) -> AsyncIterator[RecordedEvent]:
    """The events that belong to a migration beside its own stream, each once."""
    for correlation in correlations:
        async for event in store.read(EventQuery(correlation_id=correlation, to_position=position)):
            if event.aggregate_id != migration_id:
                yield event
    async for event in store.read(EventQuery(event_types=_NAMING_TYPES, to_position=position)):
        named = event.data.get("migration_id") == migration_id
        if named and event.aggregate_id != migration_id and event.correlation_id not in correlations:
            yield event


async def _handler_states(events: Sequence[RecordedEvent], handlers: Sequence[EventHandler]) -> State:
    states: State = {}
    for handler in (handler.fresh() for handler in handlers):
        for event in events:
            if handler.can_handle(event.event_type):
                await handler.handle(event)
        state = handler.state()
        if state is not None:
            states[handler.name] = state
    return states


async def save_snapshot(storage: Storage, snapshot: dict[str, Any]) -> None:
    """Store a snapshot; one of the same aggregate and version is replaced."""
    async with storage.transaction() as transaction:
        await transaction.put(SNAPSHOTS, _key(snapshot["aggregate_id"], snapshot["version"]), snapshot)


async def newest_snapshot(storage: Storage, aggregate_id: str) -> dict[str, Any] | None:
    """The snapshot of the highest version, or None."""
    async with storage.transaction() as transaction:
        found = await transaction.scan(SNAPSHOTS, prefix=f"{aggregate_id}\x1f", limit=1, backwards=True)
    return found[0][1] if found else None


def _key(aggregate_id: str, version: int) -> str:
    return f"{aggregate_id}\x1f{version:010d}"
