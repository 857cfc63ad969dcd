"""Durable folds: whatever is stored, however it is batched and by whom, the states are the pure fold's."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from eventsourcing import BaseEvent, CursorAheadError, EventStore, EventType, RecordedEvent, upcasting
from eventsourcing import generations as module
from eventsourcing.folds import Counted, DurableFold, State, fold_events
from eventsourcing.lag import lags
from eventsourcing.readmodels import (
    EVENT_STATISTICS_MODEL,
    MIGRATION_STATISTICS_MODEL,
    READ_MODELS,
    ReadModel,
)
from eventsourcing.storage.base import CHECKPOINTS, StateTable
from eventsourcing.storage.tallies import TallyQuery
from eventsourcing.testing import a_migration
from eventsourcing.upcasting import Lineage
from eventsourcing.upkeep import keep_up
from tests.factories import NOON, draft
from tests.waiting import until

ODD_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    2**53,
    2**63 - 1,
    1.5,
    "",
    "7",
    "\x1f",
    "m\x1fx",
    "x" * 256,
    "é\u0085😀",
    [],
    [[1]],
    {},
    {"migration_id": "m-1"},
    "m-1",
    "m-2",
]
ODD_FIELDS = [
    "migration_id",
    "record_count",
    "output_count",
    "imported_count",
    "success",
    "username",
    "reason",
]


def odd_event(chance: random.Random) -> BaseEvent:
    """An event of one of our types, or of nobody's, with whatever payload."""
    kind = chance.choice([*EventType, "team.own"])
    fields = chance.sample(ODD_FIELDS, chance.randint(0, 3))
    return draft(
        chance.choice(["m-1", "m-2", "user-1", "user-2", "other"]),
        kind,
        aggregate_type=chance.choice(["migration", "user", "é"]),
        correlation_id=chance.choice([None, CORRELATION, draft().event_id]),
        timestamp=NOON,
        data={name: chance.choice(ODD_VALUES) for name in fields},
    )


CORRELATION = draft().event_id


async def states(store: EventStore, table: StateTable) -> dict[str, State]:
    async with store.storage.transaction() as transaction:
        return dict(await transaction.scan(table, limit=100_000))


async def everything(store: EventStore) -> list[RecordedEvent]:
    return [event async for event in store.get_all_events()]


async def right(store: EventStore, model: ReadModel) -> None:
    """Hold the stored states against the pure fold of everything."""
    assert await states(store, model.table) == fold_events(model.fold, await everything(store))


async def level(store: EventStore, head: int) -> bool:
    return min([await model.position(store.storage) for model in READ_MODELS]) >= head


@pytest.mark.parametrize("model", READ_MODELS, ids=lambda model: model.fold.name)
@pytest.mark.parametrize("seed", range(5))
async def test_odd_payloads_never_stop_a_read_model_and_batches_do_not_show(
    store: EventStore, model: ReadModel, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(module, "BATCH", chance.choice([1, 3, 1000]))
    monkeypatch.setattr(module, "COUNTED", chance.choice([2, 7, 1000]))
    for _ in range(4):
        await store.append_events([odd_event(chance) for _ in range(40)])
        assert await model.catch_up(store.storage) == await store.horizon()
    await right(store, model)


async def test_a_payload_with_several_versions_is_read_and_not_counted(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fields show only after the upcast: here the older version called the migration by another name."""
    kind = str(EventType.USER_MIGRATED)
    renamed = Lineage(kind, (lambda old: {**old, "migration_id": old.pop("run")},))
    await store.append_events([draft("user-1", kind, aggregate_type="user", data={"run": "m-1"})])
    monkeypatch.setitem(upcasting._lineages, kind, renamed)
    upcasting.VERSIONED.add(kind)
    try:
        await MIGRATION_STATISTICS_MODEL.catch_up(store.storage)
        await right(store, MIGRATION_STATISTICS_MODEL)
        (key,) = await states(store, MIGRATION_STATISTICS_MODEL.table)
        assert key.startswith("m-1")
    finally:
        upcasting.VERSIONED.discard(kind)


async def test_callers_that_catch_up_together_count_everything_once(store: EventStore) -> None:
    async def write() -> None:
        for number in range(10):
            await store.append_events(a_migration(f"m-{number}", users=6))

    async def ask() -> None:
        for _ in range(10):
            for model in READ_MODELS:
                await model.catch_up(store.storage)

    await asyncio.gather(write(), *(ask() for _ in range(4)))
    for model in READ_MODELS:
        await model.catch_up(store.storage)
        await right(store, model)


class _Times:
    """How many events each aggregate has: one applied twice shows."""

    name, version = "times", 1
    types: frozenset[str] | None = None
    counted: Counted | None = None

    def key(self, event: BaseEvent) -> str:
        return event.aggregate_id

    def initial(self) -> State:
        return {"times": 0}

    def apply(self, state: State, event: BaseEvent, times: int = 1) -> None:  # noqa: ARG002 - one is as good as another
        state["times"] += times


async def test_who_read_ahead_of_another_process_reads_again(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 3)
    await store.append_events([draft(f"order-{n % 5}") for n in range(120)])
    model = ReadModel(_Times())

    async def now_and_then() -> None:
        generation, done, horizon = model.first, 0, await store.horizon()
        async with module.Filling(generation, store.storage) as filling:
            while done < horizon:
                done = await filling.advance(done, horizon)
                await asyncio.sleep(random.Random(done).random() * 0.005)  # so that they overtake each other

    await asyncio.gather(*(now_and_then() for _ in range(4)))
    states = dict(await model.page(store.storage))
    assert states == {f"order-{n}": {"times": 24} for n in range(5)}


async def test_a_read_model_keeps_up_with_what_comes(store: EventStore) -> None:
    keeping = [asyncio.create_task(keep_up(store.storage, model)) for model in READ_MODELS]
    try:
        for number in range(5):
            await store.append_events(a_migration(f"m-{number}"))
            head = await store.horizon()
            await until(lambda head=head: level(store, head))
    finally:
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)
    for model in READ_MODELS:
        await right(store, model)


async def test_planted_a_checkpoint_set_back_counts_twice_and_is_noticed(store: EventStore) -> None:
    await store.append_events(a_migration())
    await EVENT_STATISTICS_MODEL.catch_up(store.storage)
    async with store.storage.transaction() as transaction:
        await transaction.put(CHECKPOINTS, EVENT_STATISTICS_MODEL.first.checkpoint_key, {"position": 0})
    await EVENT_STATISTICS_MODEL.catch_up(store.storage)

    with pytest.raises(AssertionError):
        await right(store, EVENT_STATISTICS_MODEL)


async def test_a_checkpoint_above_the_head_is_an_error_never_nothing_new(store: EventStore) -> None:
    await store.append_events(a_migration())
    async with store.storage.transaction() as transaction:
        for model in READ_MODELS:
            await transaction.put(CHECKPOINTS, model.first.checkpoint_key, {"position": 1000})

    for model in READ_MODELS:
        with pytest.raises(CursorAheadError):
            await model.catch_up(store.storage)
    with pytest.raises(CursorAheadError):
        await store.get_event_stats()


async def test_statistics_count_a_long_tail_at_once_and_keep_what_they_counted(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventsourcing.readmodels.FEW", 50)
    await store.append_events([draft(f"order-{n}") for n in range(200)])
    assert (await store.get_event_stats())["total_events"] == 200
    assert await EVENT_STATISTICS_MODEL.position(store.storage) == 200, "a long tail is counted once"
    await store.append_events([draft(f"late-{n}") for n in range(50)])
    assert (await store.get_event_stats())["total_events"] == 250
    assert await EVENT_STATISTICS_MODEL.position(store.storage) == 200, "a short one is left to the worker"


async def test_a_tally_tells_apart_what_it_is_asked_to(store: EventStore) -> None:
    one = await store.append_events(
        [
            draft("a", "t.x", correlation_id=CORRELATION, data={"k": "1"}),
            draft("b", "t.x", correlation_id=CORRELATION, data={"k": "1"}),
            draft("c", "t.x", data={"k": 1}),
            draft("d", "t.y", data={}),
        ]
    )
    by_value = await store.storage.tally(TallyQuery(0, one[-1].position, frozenset({"t.x"}), "k"))
    by_type = await store.storage.tally(TallyQuery(one[0].position, one[-1].position))

    told = {(t.event.event_type, t.event.correlation_id, str(t.event.data["k"])): t.times for t in by_value}
    assert told == {("t.x", CORRELATION, "1"): 2, ("t.x", None, "1"): 1}
    assert {t.event.event_type: t.times for t in by_type} == {"t.x": 2, "t.y": 1}


@pytest.mark.parametrize("fold", [model.fold for model in READ_MODELS], ids=lambda fold: fold.name)
@pytest.mark.parametrize("seed", range(3))
def test_a_fold_cares_for_the_types_it_names_and_counts_what_it_says(fold: DurableFold, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(300):
        event = odd_event(chance)
        if fold.types is not None and event.event_type not in fold.types:
            assert fold.key(event) is None
        if fold.counted is None:
            continue
        if fold.counted.types is not None and event.event_type not in fold.counted.types:
            continue
        kept = {fold.counted.field: event.data.get(fold.counted.field or "")} if fold.counted.field else {}
        twin = draft(
            "another",
            event.event_type,
            aggregate_type=event.aggregate_type,
            correlation_id=event.correlation_id if fold.counted.field else None,
            timestamp=event.timestamp,
            data=kept,
        )
        assert fold.key(twin) == fold.key(event)
        one_by_one, at_once = fold.initial(), fold.initial()
        for _ in range(3):
            fold.apply(one_by_one, event)
        fold.apply(at_once, twin, 3)
        assert one_by_one == at_once


async def test_lag_is_told_in_events_and_in_seconds(store: EventStore) -> None:
    await EVENT_STATISTICS_MODEL.catch_up(store.storage)
    await store.append_events(a_migration())
    behind = {lag.name: lag for lag in await lags(store.storage)}[EVENT_STATISTICS_MODEL.table.name]
    await EVENT_STATISTICS_MODEL.catch_up(store.storage)
    level = {lag.name: lag for lag in await lags(store.storage)}[EVENT_STATISTICS_MODEL.table.name]

    assert (behind.kind, behind.position, behind.events) == ("read-model", 0, len(a_migration()))
    assert 0 < behind.seconds < 60
    assert (level.events, level.seconds) == (0, 0.0)
    assert {lag.name for lag in await lags(store.storage)} >= {model.table.name for model in READ_MODELS}
