"""Claimed states belong to one transaction at a time; predecessors are the last versions of each type."""

from __future__ import annotations

import asyncio

from eventsourcing import EventStore
from eventsourcing.fold_handler import FoldHandler, advance
from eventsourcing.predecessors import Predecessors
from eventsourcing.storage.base import StateTable
from tests.factories import draft, drafts
from tests.integration.kafka.lab import Versions

COUNTS = StateTable("counts")


async def test_a_claim_makes_what_is_new_and_returns_what_is_there(store: EventStore) -> None:
    async with store.storage.transaction() as transaction:
        await transaction.put(COUNTS, "old", {"count": 7})
    async with store.storage.transaction() as transaction:
        found = await transaction.claim(COUNTS, ["new", "old", "new"], {"count": 0})
    async with store.storage.transaction() as transaction:
        kept = await transaction.get(COUNTS, "new")

    assert found == {"new": {"count": 0}, "old": {"count": 7}}
    assert kept == {"count": 0}


async def test_claims_of_the_same_keys_take_turns(store: EventStore) -> None:
    """Twenty transactions claim overlapping keys in opposite orders; no increment is lost, none deadlocks."""

    async def increment(keys: list[str]) -> None:
        async with store.storage.transaction() as transaction:
            found = await transaction.claim(COUNTS, keys, {"count": 0})
            await asyncio.sleep(0.001)
            await transaction.put_many(
                COUNTS, {key: {"count": row["count"] + 1} for key, row in found.items()}
            )

    keys = ["a", "b", "c"]
    await asyncio.gather(*(increment(keys[:: 1 if number % 2 else -1]) for number in range(20)))

    async with store.storage.transaction() as transaction:
        assert await transaction.get_many(COUNTS, keys) == {key: {"count": 20} for key in keys}


async def test_checkpoints_move_forward_only_and_each_event_is_new_once(store: EventStore) -> None:
    recorded = await store.append_events([*drafts(3, "order-1"), *drafts(1, "order-2")])

    async def fresh(*places: int) -> list[int]:
        async with store.storage.transaction() as transaction:
            events = [recorded[place] for place in places]
            found = await advance(transaction, COUNTS, "me", events)
            return [events.index(event) for event in recorded if event in found]

    assert await fresh(0, 1) == [0, 1]
    assert await fresh(0) == []
    assert await fresh(1, 2, 3) == [1, 2]
    results = await asyncio.gather(*(fresh(0, 1, 2, 3) for _ in range(4)))
    assert results == [[]] * 4


async def test_a_fold_behind_a_handler_applies_each_event_once_whoever_repeats_it(store: EventStore) -> None:
    recorded = await store.append_events(drafts(5))
    fold = FoldHandler(Versions(), store.storage)
    twin = FoldHandler(Versions(), store.storage)  # of another process

    for event in recorded:
        await asyncio.gather(fold.handle(event), twin.handle(event))
        await fold.handle(recorded[0])

    assert await fold.state_of("order-1") == {"versions": [1, 2, 3, 4, 5]}


async def test_the_last_versions_of_each_type_below_a_version(store: EventStore) -> None:
    kinds = ["order.placed", "order.paid", "order.placed", "order.sent"]
    await store.append_events([draft("order-1", kind) for kind in kinds])
    await store.append_event(draft("order-2"))

    found = await store.storage.last_versions({"order-1": 4, "order-2": 1, "order-3": 9})

    assert found == {"order-1": {"order.placed": 3, "order.paid": 2}}


async def test_predecessors_are_the_same_whatever_is_remembered(store: EventStore) -> None:
    kinds = ["order.placed", "order.paid", "order.placed", "order.sent"]
    events = await store.append_events(
        [draft(f"order-{number}", kind) for kind in kinds for number in range(3)]
    )
    expected = [
        dict(sorted(await before(store, event.aggregate_id, event.event_version))) for event in events
    ]

    for size in (1, 2, 100):
        predecessors = Predecessors(store.storage, size=size)
        found = [one for event in events for one in await predecessors.of([event])]
        again = await predecessors.of(events)  # as a relay that begins again
        assert [dict(sorted(one.items())) for one in found] == expected
        assert [dict(sorted(one.items())) for one in again] == expected


async def before(store: EventStore, aggregate_id: str, version: int) -> list[tuple[str, int]]:
    return list(
        {
            str(event.event_type): event.event_version
            for event in await store.get_events(aggregate_id, to_version=version - 1)
        }.items()
    )
