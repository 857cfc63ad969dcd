"""Snapshots hold against a fresh fold, say when they are stale, and are where a replay can begin."""

from __future__ import annotations

from typing import Any, Self

import pytest

from eventsourcing import (
    EventHandler,
    EventReplay,
    EventStore,
    MigrationEventHandler,
    NotFoundError,
    plugins,
    register_handler,
)
from eventsourcing.events import BaseEvent
from eventsourcing.snapshots import SNAPSHOTS, list_snapshots, newest_snapshot, verify_snapshot
from eventsourcing.statistics import MIGRATION_STATISTICS
from eventsourcing.testing import InMemoryHandler, a_migration
from tests.factories import draft, drafts


class Sum(EventHandler):
    """Adds up a payload field, by aggregate."""

    restorable = True

    def __init__(self) -> None:
        self.sums: dict[str, int] = {}
        self.calls = 0

    def can_handle(self, event_type: str) -> bool:
        return event_type == "order.placed"

    async def handle(self, event: BaseEvent) -> None:
        self.calls += 1
        self.sums[event.aggregate_id] = self.sums.get(event.aggregate_id, 0) + event.data["number"]

    def fresh(self) -> Self:
        return type(self)()

    def state(self) -> dict[str, Any]:
        return self.sums

    def restore(self, state: dict[str, Any]) -> None:
        self.sums = state


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Sum:
    monkeypatch.setattr(plugins, "_handlers", {})
    handler = Sum()
    register_handler(handler)
    return handler


async def snapshot(store: EventStore, aggregate_id: str, version: int | None = None) -> dict[str, Any]:
    replay = EventReplay(store)
    for handler in plugins.replay_handlers():
        replay.add_handler(handler)
    return await replay.create_snapshot(aggregate_id, version)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("aggregate_id", ["m-1", "user-m-1-1", "order-1"])
async def test_a_snapshot_is_verified_against_a_fresh_fold(store: EventStore, aggregate_id: str) -> None:
    await store.append_events([*a_migration("m-1"), *drafts(5)])
    taken = await snapshot(store, aggregate_id)
    await store.append_events([*a_migration("m-2"), *drafts(2)])  # what came later is not its business
    good = await verify_snapshot(store, aggregate_id)
    assert (good.is_valid, good.is_intact, good.is_stale, good.fields) == (True, True, False, [])
    assert (good.fresh_hash, good.version) == (taken["state_hash"], taken["version"])


async def test_a_changed_snapshot_and_a_wrong_one_are_told_apart(store: EventStore) -> None:
    await store.append_events(a_migration("m-1"))
    await snapshot(store, "m-1")
    key = f"m-1\x1f{6:010d}"
    async with store.storage.transaction() as transaction:
        row = await transaction.get(SNAPSHOTS, key)
        assert row is not None
        row["state"]["user_count"] = 99
        await transaction.put(SNAPSHOTS, key, row)
    found = await verify_snapshot(store, "m-1")
    assert (found.is_valid, found.is_intact, found.fields) == (False, False, ["user_count"])


async def test_a_fold_of_another_version_makes_snapshots_stale_and_a_wrong_fold_shows(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.append_events(a_migration("m-1"))
    await snapshot(store, "m-1")
    monkeypatch.setattr(type(MIGRATION_STATISTICS), "version", 2)
    plain = type(MIGRATION_STATISTICS).apply

    def apply(fold: Any, state: Any, event: Any, times: int = 1) -> None:
        plain(fold, state, event, times)
        state["counts"]["user_count"] = 7

    monkeypatch.setattr(type(MIGRATION_STATISTICS), "apply", apply)
    found = await verify_snapshot(store, "m-1")
    assert (found.is_valid, found.is_intact, found.is_stale, found.fields) == (
        False,
        True,
        True,
        ["user_count"],
    )
    assert [one["is_stale"] for one in await list_snapshots(store.storage)] == [True]
    newest = await newest_snapshot(store.storage, "m-1")
    assert newest is not None
    assert newest["is_stale"]


async def test_snapshots_are_listed_in_pages(store: EventStore) -> None:
    await store.append_events([*drafts(12), draft("order-2"), draft("order-10")])
    for aggregate_id, version in (("order-1", 2), ("order-1", 11), ("order-10", None), ("order-2", None)):
        await snapshot(store, aggregate_id, version)
    every = [(one["aggregate_id"], one["version"]) for one in await list_snapshots(store.storage)]
    assert every == [("order-1", 2), ("order-1", 11), ("order-10", 1), ("order-2", 1)]
    page = await list_snapshots(store.storage, after=("order-1", 2), limit=2)
    assert [(one["aggregate_id"], one["version"]) for one in page] == every[1:3]
    assert [one["version"] for one in await list_snapshots(store.storage, "order-1")] == [2, 11]
    assert "state" not in page[0]
    newest = await newest_snapshot(store.storage, "order-1", up_to_version=10)
    assert newest is not None
    assert newest["version"] == 2


async def test_what_was_never_taken_cannot_be_verified(store: EventStore) -> None:
    await store.append_events(drafts(3))
    with pytest.raises(NotFoundError, match="snapshot 'order-1'"):
        await verify_snapshot(store, "order-1")
    await snapshot(store, "order-1", 2)
    with pytest.raises(NotFoundError, match="order-1@3"):
        await verify_snapshot(store, "order-1", 3)


async def test_a_replay_begins_at_a_snapshot_and_ends_in_the_same_state(
    store: EventStore, registered: Sum
) -> None:
    await store.append_events(drafts(10))
    await snapshot(store, "order-1", 6)
    hashes = []
    for from_snapshot in (False, True):
        handlers = Sum(), MigrationEventHandler()
        replay = EventReplay(store)
        for handler in handlers:
            replay.add_handler(handler)
        result = await replay.replay_aggregate_events("order-1", from_snapshot=from_snapshot)
        hashes.append(result.state_hashes)
        assert handlers[0].sums == {"order-1": 45}
        assert handlers[0].calls == result.total_events == (4 if from_snapshot else 10)
        assert result.from_snapshot == (6 if from_snapshot else None)
    assert hashes[0] == hashes[1]


async def test_a_snapshot_is_no_starting_point_for_a_handler_that_cannot_take_it_over(
    store: EventStore, registered: Sum, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.append_events(drafts(10))
    await snapshot(store, "order-1", 6)
    for handler, also in ((InMemoryHandler(), Sum()), (Sum(), MigrationEventHandler())):
        if isinstance(handler, Sum):
            monkeypatch.setattr(Sum, "state_version", "2")
        replay = EventReplay(store)
        replay.add_handler(handler)
        replay.add_handler(also)
        result = await replay.replay_aggregate_events("order-1", from_snapshot=True)
        assert (result.total_events, result.from_snapshot) == (10, None)


@pytest.mark.usefixtures("registered")
async def test_planted_a_starting_state_of_other_events_is_noticed(store: EventStore) -> None:
    await store.append_events(drafts(10))
    await snapshot(store, "order-1", 6)
    async with store.storage.transaction() as transaction:
        key = f"order-1\x1f{6:010d}"
        row = await transaction.get(SNAPSHOTS, key)
        assert row is not None
        row["handler_states"]["Sum"]["state"]["order-1"] -= 1
        await transaction.put(SNAPSHOTS, key, row)
    handler = Sum()
    replay = EventReplay(store)
    replay.add_handler(handler)
    await replay.replay_aggregate_events("order-1", from_snapshot=True)
    assert handler.sums == {"order-1": 44}
