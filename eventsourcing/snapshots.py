"""Snapshots: the state of one aggregate at a version, stored, with the hash of the state.

A migration's snapshot folds the events linked to it, up to the position of the last version taken;
a user's or an admin's is the record's view; any other aggregate's is what the handlers made of it. Beside
it stand the handlers' own states at that version, from which a replay of the aggregate can begin. A
snapshot says which versions of the folds made it: it is stale once the code has others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from eventsourcing.canonical import decode, encode, state_hash
from eventsourcing.errors import NotFoundError
from eventsourcing.events import EventType, RecordedEvent
from eventsourcing.folds import ADMIN_MIGRATIONS, USER_MIGRATIONS, Fold, State
from eventsourcing.handlers import EventHandler, MigrationEventHandler, by_name
from eventsourcing.plugins import replay_handlers
from eventsourcing.query import EventQuery
from eventsourcing.statistics import MIGRATION_STATISTICS, links, merge
from eventsourcing.storage.base import StateTable, Storage
from eventsourcing.store import EventStore

SNAPSHOTS = StateTable("snapshots")
"""Key: aggregate_id, separator, version in ten digits. Value: the snapshot."""

_NAMING_TYPES = (
    EventType.ROLLBACK_INITIATED,
    EventType.ROLLBACK_COMPLETED,
    EventType.USER_ROLLED_BACK,
    EventType.ADMIN_ROLLED_BACK,
)
"""Types whose payload names the migration, so that they belong to it without a correlation."""

_FOLDS: tuple[Fold, ...] = (MIGRATION_STATISTICS, USER_MIGRATIONS, ADMIN_MIGRATIONS)
"""Those that make a snapshot's state by themselves."""

_SEPARATOR = "\x1f"


@dataclass(frozen=True, slots=True)
class FoldedAggregate:
    """What an aggregate's events came to. `events` counts everything folded; `handler_states` is what each
    handler with a state made of the aggregate's own events, `versions` what made `state`."""

    state: State
    version: int
    position: int
    events: int
    versions: dict[str, str]
    handler_states: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class SnapshotVerdict:
    """Whether a snapshot is what its events come to now. `fields` are the parts of the state that differ;
    `is_intact` says that the stored state still has the hash that was stored with it."""

    aggregate_id: str
    version: int
    position: int
    is_valid: bool
    is_intact: bool
    is_stale: bool
    state_hash: str
    fresh_hash: str
    fields: list[str]


async def fold_aggregate(
    store: EventStore,
    aggregate_id: str,
    up_to_version: int | None,
    handlers: Sequence[EventHandler] = (),
    *,
    position: int | None = None,
) -> FoldedAggregate:
    """Fold one aggregate up to a version, and what is linked to it up to a position.

    `position` None is that of the version, or the horizon without one. Memory holds the states and a page
    of events. Raises NotFoundError when that leaves no events.
    """
    twins = by_name(handler.fresh() for handler in (MigrationEventHandler(), *handlers))
    parts: dict[str, State] = {}
    kinds: set[str] = set()
    last, count = None, 0
    async for event in store.read(EventQuery(aggregate_id=aggregate_id, to_version=up_to_version)):
        last, count = event, count + 1
        kinds.add(event.aggregate_type)
        _apply(MIGRATION_STATISTICS, parts, event)
        for twin in twins.values():
            if twin.can_handle(event.event_type):
                await twin.handle(event)
    if last is None:
        raise NotFoundError("aggregate", aggregate_id)
    if position is None:
        position = max(await store.horizon(), last.position) if up_to_version is None else last.position
    made = {name: state for name, twin in twins.items() if (state := twin.state()) is not None}
    kept = {name: {"version": twins[name].state_version, "state": state} for name, state in made.items()}
    if "migration" in kinds:
        count += await _fold_linked(store, aggregate_id, parts, position)
        state, versions = merge(parts.values()), _versions(MIGRATION_STATISTICS)
    elif kinds & {"user", "admin"}:
        view: Fold = USER_MIGRATIONS if "user" in kinds else ADMIN_MIGRATIONS
        own = made[MigrationEventHandler().name][view.name]
        state, versions = own.get(aggregate_id, view.initial()), _versions(view)
    else:
        state = {handler.name: made[handler.name] for handler in handlers if handler.name in made}
        versions = {name: twins[name].state_version for name in state}
    return FoldedAggregate(state, last.event_version, position, count, versions, kept)


def _versions(fold: Fold) -> dict[str, str]:
    return {fold.name: str(fold.version)}


def _apply(fold: Fold, states: dict[str, State], event: RecordedEvent) -> None:
    key = fold.key(event)
    if key is not None:
        fold.apply(states.setdefault(key, fold.initial()), event)


async def _fold_linked(store: EventStore, migration_id: str, parts: dict[str, State], position: int) -> int:
    """Fold what belongs to a migration beside its own stream; return how many events that is."""
    correlations = {UUID(link) for link in links(parts.values())}
    count = 0
    async for event in _linked(store, migration_id, correlations, position):
        count += 1
        _apply(MIGRATION_STATISTICS, parts, event)
    return count


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


def snapshot_of(aggregate_id: str, folded: FoldedAggregate) -> dict[str, Any]:
    """What is stored of a folded aggregate, apart from `handler_states`."""
    state = decode(encode(folded.state))
    return {
        "aggregate_id": aggregate_id,
        "version": folded.version,
        "position": folded.position,
        "snapshot_time": datetime.now(UTC),
        "state": state,
        "state_hash": state_hash(state),
        "versions": folded.versions,
        "is_stale": False,
    }


async def save_snapshot(storage: Storage, snapshot: dict[str, Any], folded: FoldedAggregate) -> None:
    """Store a snapshot with the states that a replay can begin at; one of the same version is replaced."""
    value = {**snapshot, "handler_states": folded.handler_states}
    async with storage.transaction() as transaction:
        await transaction.put(SNAPSHOTS, _key(snapshot["aggregate_id"], snapshot["version"]), value)


async def newest_snapshot(
    storage: Storage, aggregate_id: str, *, up_to_version: int | None = None
) -> dict[str, Any] | None:
    """The snapshot of the highest version, at or below a bound; None without one. `is_stale` says whether
    other versions of the folds made it than this code has."""
    found = await _newest(storage, aggregate_id, up_to_version)
    if found is not None:
        found.pop("handler_states", None)
    return found


async def _newest(storage: Storage, aggregate_id: str, up_to_version: int | None) -> dict[str, Any] | None:
    after = None if up_to_version is None else _key(aggregate_id, up_to_version + 1)
    async with storage.transaction() as transaction:
        found = await transaction.scan(
            SNAPSHOTS, prefix=f"{aggregate_id}{_SEPARATOR}", after=after, limit=1, backwards=True
        )
    return {**found[0][1], "is_stale": is_stale(found[0][1])} if found else None


async def list_snapshots(
    storage: Storage,
    aggregate_id: str | None = None,
    *,
    after: tuple[str, int] | None = None,
    limit: int = 100,
) -> list[dict[str, Any]]:
    """The next snapshots, all or of one aggregate, by aggregate and version, beyond the pair `after`:
    {aggregate_id, version, position, snapshot_time, state_hash, versions, is_stale}."""
    prefix = "" if aggregate_id is None else f"{aggregate_id}{_SEPARATOR}"
    async with storage.transaction() as transaction:
        rows = await transaction.scan(
            SNAPSHOTS, prefix=prefix, after=None if after is None else _key(*after), limit=limit
        )
    names = ("aggregate_id", "version", "position", "snapshot_time", "state_hash", "versions")
    return [{**{name: row.get(name) for name in names}, "is_stale": is_stale(row)} for _, row in rows]


async def verify_snapshot(
    store: EventStore, aggregate_id: str, version: int | None = None
) -> SnapshotVerdict:
    """Hold a stored snapshot, the newest or that of a version, against a fresh fold of its events.

    Nothing is changed. Raises NotFoundError without such a snapshot.
    """
    await store.initialize()
    snapshot = await newest_snapshot(store.storage, aggregate_id, up_to_version=version)
    if snapshot is None or version not in (None, snapshot["version"]):
        raise NotFoundError("snapshot", aggregate_id if version is None else f"{aggregate_id}@{version}")
    stored = snapshot["state"]
    handlers = [each for each in replay_handlers() if each.name in stored]
    folded = await fold_aggregate(
        store, aggregate_id, snapshot["version"], handlers, position=snapshot["position"]
    )
    fresh = decode(encode(folded.state))
    fresh_hash, is_intact = state_hash(fresh), state_hash(stored) == snapshot["state_hash"]
    return SnapshotVerdict(
        aggregate_id,
        snapshot["version"],
        snapshot["position"],
        is_valid=is_intact and fresh_hash == snapshot["state_hash"],
        is_intact=is_intact,
        is_stale=snapshot["is_stale"],
        state_hash=snapshot["state_hash"],
        fresh_hash=fresh_hash,
        fields=sorted(
            name
            for name in {*fresh, *stored}
            if (name in fresh, fresh.get(name)) != (name in stored, stored.get(name))
        ),
    )


def is_stale(snapshot: Mapping[str, Any]) -> bool:
    """Whether the code has other versions of what made the snapshot, or no longer has it."""
    current = {fold.name: str(fold.version) for fold in _FOLDS}
    current |= {handler.name: handler.state_version for handler in replay_handlers()}
    return any(current.get(name) != version for name, version in snapshot.get("versions", {"": ""}).items())


async def restore_from_snapshot(
    storage: Storage, aggregate_id: str, handlers: Sequence[EventHandler], *, up_to_version: int | None
) -> int:
    """Let handlers take over what the newest fitting snapshot holds of each; the version they are at then.

    0, and no handler touched, unless every handler can: a state that another version of the handler made
    is no starting point.
    """
    snapshot = await _newest(storage, aggregate_id, up_to_version)
    kept = (snapshot or {}).get("handler_states", {})
    fits = [kept.get(handler.name, {}).get("version") == handler.state_version for handler in handlers]
    if snapshot is None or not handlers or not all(fits) or not all(each.restorable for each in handlers):
        return 0
    for handler in handlers:
        handler.restore(kept[handler.name]["state"])
    return int(snapshot["version"])


def _key(aggregate_id: str, version: int) -> str:
    return f"{aggregate_id}{_SEPARATOR}{version:010d}"
