"""What a read model said then is what the fold makes of the events until then, whatever came later."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest

from eventsourcing import EventStore, RollbackInitiatedEvent, UserMigratedEvent, UserRolledBackEvent
from eventsourcing.folds import State, fold_events
from eventsourcing.readmodels import (
    EVENT_STATISTICS_MODEL,
    MIGRATION_STATISTICS_MODEL,
    READ_MODELS,
    USER_MIGRATIONS_MODEL,
    ReadModel,
)
from eventsourcing.testing import a_migration
from eventsourcing.time_travel import AsOf, state_as_of, states_as_of
from tests.factories import NOON


@pytest.fixture
async def history(store: EventStore) -> EventStore:
    """Forty events about ten users, an hour apart, and two migrations."""
    chance = random.Random(3)
    for hour in range(40):
        key = {"user_id": f"user-{chance.randrange(10)}", "timestamp": NOON + timedelta(hours=hour)}
        if chance.random() < 0.25:
            await store.append_event(
                UserRolledBackEvent(**key, rollback_id="r", migration_id="m-1", action="deleted")
            )
        else:
            await store.append_event(
                UserMigratedEvent(**key, username=f"n{hour}", source_data={}, target_data={})
            )
    await store.append_events([*a_migration("m-1"), *a_migration("m-2")])
    return store


@pytest.mark.parametrize("model", READ_MODELS, ids=lambda model: model.name)
async def test_pages_of_any_size_are_the_fold_up_to_there(history: EventStore, model: ReadModel) -> None:
    events = [event async for event in history.get_all_events()]
    for upto in (0, 1, 17, 40, 47, len(events), len(events) + 100):
        expected = fold_events(model.fold, events[:upto])
        for limit in (1, 3, 100):
            found: dict[str, State] = {}
            after = ""
            while page := await states_as_of(
                history.storage, model, AsOf(position=upto), after=after, limit=limit
            ):
                assert len(page) <= limit
                found.update(page)
                after = page[-1][0]
            assert list(found) == sorted(expected, key=str.encode)
            assert found == expected


async def test_a_moment_counts_what_had_happened_by_then(history: EventStore) -> None:
    events = [event async for event in history.get_all_events()]
    moment = NOON + timedelta(hours=20)
    expected = fold_events(
        USER_MIGRATIONS_MODEL.fold, [event for event in events if event.timestamp <= moment]
    )
    assert dict(await states_as_of(history.storage, USER_MIGRATIONS_MODEL, AsOf(moment=moment))) == expected
    for key, state in expected.items():
        assert await state_as_of(history.storage, USER_MIGRATIONS_MODEL, key, AsOf(moment=moment)) == state
    both = AsOf(position=10, moment=moment)
    assert dict(await states_as_of(history.storage, USER_MIGRATIONS_MODEL, both)) == fold_events(
        USER_MIGRATIONS_MODEL.fold, events[:10]
    )


async def test_the_present_is_what_the_live_read_model_says(history: EventStore) -> None:
    now = AsOf(position=await history.horizon())
    for model in READ_MODELS:
        await model.catch_up(history.storage)
        live = dict(await model.page(history.storage))
        assert dict(await states_as_of(history.storage, model, now)) == live
    stats = await MIGRATION_STATISTICS_MODEL.stats(history.storage, "m-1")
    assert await state_as_of(history.storage, MIGRATION_STATISTICS_MODEL, "m-1", now) == stats
    assert stats["rolled_back_count"] > 0


async def test_a_migration_looked_back_at_knows_nothing_later(history: EventStore) -> None:
    then = AsOf(position=await history.horizon())
    before = await state_as_of(history.storage, MIGRATION_STATISTICS_MODEL, "m-1", then)
    await history.append_event(
        RollbackInitiatedEvent(rollback_id="r", migration_id="m-1", reason="no", rollback_scope={})
    )
    now = AsOf(position=await history.horizon())
    assert before is not None
    assert "rollback_initiated" not in before
    assert await state_as_of(history.storage, MIGRATION_STATISTICS_MODEL, "m-1", then) == before
    after = await state_as_of(history.storage, MIGRATION_STATISTICS_MODEL, "m-1", now)
    assert after is not None
    assert after["rollback_initiated"]["reason"] == "no"


async def test_a_key_that_had_no_state_has_none(history: EventStore) -> None:
    for model in READ_MODELS:
        assert await state_as_of(history.storage, model, "nobody", AsOf(position=40)) is None
    assert await state_as_of(history.storage, EVENT_STATISTICS_MODEL, "all", AsOf(position=0)) is None
