"""A rebuild shows exactly what differs, is switched to whole, and is taken up where it was interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from eventsourcing import (
    BusyError,
    EventStore,
    NotFoundError,
    StateForbidsError,
    UserMigratedEvent,
    UserRolledBackEvent,
    differences,
    generations,
    heartbeats,
    rebuilds,
    switching,
)
from eventsourcing.differences import DIFFERENCES, KEPT
from eventsourcing.events import BaseEvent, EventType
from eventsourcing.folds import MigratedRecordsFold, State, fold_events
from eventsourcing.lag import lags
from eventsourcing.readmodels import READ_MODELS, USER_MIGRATIONS_MODEL, ReadModel, read_model
from eventsourcing.rebuilds import RebuildProgress, rebuild
from eventsourcing.storage.base import CHECKPOINTS, Storage
from eventsourcing.switching import describe, difference_rows, switch
from eventsourcing.testing import a_migration
from eventsourcing.upkeep import keep_up
from tests.waiting import until

USERS = 40


class UsersFold(MigratedRecordsFold):
    """The users' fold, right from version 2 on; version 1 spells some names wrong, loses one user and keeps
    one that was taken back."""

    def __init__(self, version: int) -> None:
        super().__init__("user", EventType.USER_MIGRATED, EventType.USER_ROLLED_BACK)
        self.version = version

    def key(self, event: BaseEvent) -> str | None:
        key = super().key(event)
        return None if self.version == 1 and key == "user-7" else key

    def apply(self, state: State, event: BaseEvent, times: int = 1) -> None:
        if self.version == 1 and event.event_type == EventType.USER_ROLLED_BACK:
            return
        super().apply(state, event, times)
        if self.version == 1 and event.aggregate_id in WRONG:
            state["username"] = str(state["username"]).upper()


WRONG = {"user-3", "user-11"}
BACK = "user-20"
OLD, NEW = ReadModel(UsersFold(1)), ReadModel(UsersFold(2))


def user(number: int, name: str = "name") -> UserMigratedEvent:
    return UserMigratedEvent(
        user_id=f"user-{number}", username=f"{name}{number}", source_data={"n": number}, target_data={}
    )


@pytest.fixture
async def wrong(store: EventStore) -> EventStore:
    """A store whose live read model was folded wrongly."""
    await store.append_events([user(number) for number in range(USERS)])
    await store.append_event(
        UserRolledBackEvent(user_id=BACK, rollback_id="r", migration_id="m", action="deleted")
    )
    await OLD.catch_up(store.storage)
    return store


async def read(store: EventStore, model: ReadModel) -> dict[str, State]:
    found: dict[str, State] = {}
    async with model.reading(store.storage) as (transaction, live):
        while rows := await transaction.scan(live.table, after=max(found, key=str.encode, default=None)):
            found.update(rows)
    return found


async def folded(store: EventStore, model: ReadModel) -> dict[str, State]:
    return fold_events(model.fold, [event async for event in store.get_all_events()])


async def test_a_rebuild_shows_exactly_the_differing_rows_and_changes_nothing_that_is_read(
    wrong: EventStore,
) -> None:
    before = await read(wrong, NEW)
    result = await rebuild(wrong.storage, NEW)
    rows = await difference_rows(wrong.storage, NEW)

    assert result.difference is not None
    assert result.difference.to_dict() == {
        "position": USERS + 1, "same": USERS - 4, "changed": 3, "only_old": 0, "only_new": 1, "kept": 4,
        "rows": 4,
    }  # fmt: skip
    assert [(row.key, row.kind) for row in rows] == [
        ("user-11", "changed"), ("user-20", "changed"), ("user-3", "changed"), ("user-7", "only_new"),
    ]  # fmt: skip
    assert rows[0].fields == ["username"]
    assert (rows[0].old, rows[0].new) == (
        {**(rows[0].new or {}), "username": "NAME11"},
        {**(rows[0].old or {}), "username": "name11"},
    )
    assert rows[1].new == {}
    assert await read(wrong, NEW) == before == await folded(wrong, OLD)
    assert [row.key for row in await difference_rows(wrong.storage, NEW, after="user-20", limit=1)] == [
        "user-3"
    ]


async def test_a_switch_goes_there_and_back(wrong: EventStore) -> None:
    await rebuild(wrong.storage, NEW)
    there = await switch(wrong.storage, NEW)
    assert await read(wrong, NEW) == await folded(wrong, NEW)
    assert (there["live"]["fold_version"], there["beside"]["state"]) == (2, "previous")

    await wrong.append_event(user(99))
    await NEW.catch_up(wrong.storage)
    back = await switch(wrong.storage, NEW)
    stale = await read(wrong, NEW)
    assert (back["live"]["fold_version"], back["live"]["behind"]) == (1, 1)
    assert "user-99" not in stale, "what this code cannot fold is read as it stands"

    await switch(wrong.storage, NEW)
    assert await read(wrong, NEW) == await folded(wrong, NEW)


async def test_no_reader_sees_a_half_state_while_events_come_and_generations_go(store: EventStore) -> None:
    """Each batch migrates all users anew: a reader that finds two names has seen two states at once."""

    async def write() -> None:
        for round_ in range(500):
            await store.append_events([user(number, f"r{round_}-") for number in range(USERS)])
            await NEW.catch_up(store.storage)
            await asyncio.sleep(0.001)
            if len(seen) > 10 and turns:
                break

    async def turn() -> None:
        while not writing.done():
            await rebuild(store.storage, NEW, fresh=True)
            await switch(store.storage, NEW)
            turns.append(True)

    async def look() -> None:
        while not writing.done():
            seen.append(await read_slowly(store))

    seen: list[dict[str, State]] = []
    turns: list[bool] = []
    await store.append_events([user(number, "first") for number in range(USERS)])
    await NEW.catch_up(store.storage)
    writing = asyncio.create_task(write())
    await asyncio.gather(writing, turn(), look(), look())

    assert len(seen) > 10
    assert turns
    for found in seen:
        assert len(found) == USERS
        assert len({str(state["username"]).rpartition("-")[0] or "first" for state in found.values()}) == 1


async def a_moment() -> None:
    await asyncio.sleep(0.002)


async def read_slowly(
    store: EventStore, between: Callable[[], Awaitable[object]] = a_moment
) -> dict[str, State]:
    """As a reader with many pages does: others have their turn between two of them."""
    found: dict[str, State] = {}
    after = None
    async with NEW.reading(store.storage) as (transaction, live):
        while rows := await transaction.scan(live.table, after=after, limit=7):
            found.update(rows)
            after = rows[-1][0]
            await between()
    return found


async def test_planted_a_reader_without_a_snapshot_sees_a_half_state(
    postgres: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: what the test above would have found. In memory transactions run one at a time."""
    store = postgres
    await store.append_events([user(number, "first") for number in range(USERS)])
    await NEW.catch_up(store.storage)
    plain = store.storage.transaction
    monkeypatch.setattr(store.storage, "transaction", lambda **_: plain())

    async def others() -> None:
        if not turns:
            turns.append(True)
            await store.append_events([user(number, "second") for number in range(USERS)])
            await NEW.catch_up(store.storage)

    turns: list[bool] = []
    found = await read_slowly(store, others)
    assert {str(state["username"])[:5] for state in found.values()} == {"first", "secon"}


async def test_a_stopped_rebuild_goes_on_at_its_checkpoint_unless_it_is_to_start_over(
    wrong: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilds, "REPORT_S", 0.0)
    monkeypatch.setattr(generations, "BATCH", 10)
    told: list[RebuildProgress] = []

    async def stop(progress: RebuildProgress) -> bool:
        told.append(progress)
        return len(told) < 2

    stopped = await rebuild(wrong.storage, NEW, report=stop)
    assert (stopped.difference, stopped.position, told[-1].target) == (None, 20, USERS + 1)
    with pytest.raises(StateForbidsError, match="building"):
        await switch(wrong.storage, NEW)
    resumed = await rebuild(wrong.storage, NEW)
    assert resumed.table == stopped.table
    again = await rebuild(wrong.storage, NEW)
    assert again.table != resumed.table, "what was complete is not taken up"
    fresh = await rebuild(wrong.storage, NEW, fresh=True)
    assert fresh.difference == again.difference == resumed.difference

    async with wrong.storage.transaction() as transaction:
        left = [
            await transaction.count(NEW.generation({"number": n, "fold_version": 2}).table) for n in (2, 3)
        ]
        assert left == [0, 0], "what is no longer beside is removed"
        assert await transaction.count(DIFFERENCES) == 4


async def test_a_rebuild_whose_process_died_reads_as_interrupted(
    wrong: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilds, "REPORT_S", 0.0)

    async def die(_: RebuildProgress) -> bool:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        await rebuild(wrong.storage, NEW, report=die)
    beside = (await describe(wrong.storage, NEW))["beside"]
    assert beside["state"] == "building"
    monkeypatch.setattr(heartbeats, "STALE_AFTER", timedelta(0))
    assert (await describe(wrong.storage, NEW))["beside"]["state"] == "interrupted"
    assert (await rebuild(wrong.storage, NEW)).difference is not None


async def test_a_live_model_ahead_of_what_was_rebuilt_is_caught_up_with_before_it_is_compared(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing differs, whatever is appended and applied between the last batch and the comparison."""
    await store.append_events([user(number) for number in range(5)])
    forget = differences.forget

    async def append_and_forget(*args: Any) -> None:
        await store.append_events([user(number, "later") for number in range(3, 8)])
        await NEW.catch_up(store.storage)
        await forget(*args)

    monkeypatch.setattr(rebuilds, "forget", append_and_forget)
    result = await rebuild(store.storage, NEW)

    assert result.difference is not None
    assert (result.difference.rows, result.difference.same, result.difference.position) == (0, 8, 10)


async def test_one_at_a_time(wrong: EventStore) -> None:
    async with wrong.storage.lease(f"rebuild/{NEW.name}"):
        with pytest.raises(BusyError):
            await rebuild(wrong.storage, NEW)
        with pytest.raises(BusyError):
            await switch(wrong.storage, NEW)


async def test_who_is_about_to_let_go_is_waited_for(wrong: EventStore) -> None:
    """Everybody reads that it is ready a moment before the rebuild lets go."""
    await rebuild(wrong.storage, NEW)
    async with wrong.storage.lease(f"rebuild/{NEW.name}"):
        asked = asyncio.create_task(switch(wrong.storage, NEW))
        await asyncio.sleep(2 * rebuilds.LETS_GO_S / rebuilds.TRIES)
        assert not asked.done()
    assert (await asked)["live"]["fold_version"] == 2


async def test_two_who_want_the_same_do_not_switch_there_and_back(
    wrong: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rebuild(wrong.storage, NEW)
    alone = rebuilds.alone

    @asynccontextmanager
    async def behind_another(storage: Storage, model: ReadModel) -> AsyncIterator[None]:
        monkeypatch.setattr(switching, "alone", alone)
        await switch(storage, model)
        async with alone(storage, model):
            yield

    monkeypatch.setattr(switching, "alone", behind_another)
    with pytest.raises(BusyError, match="by another process"):
        await switch(wrong.storage, NEW)
    assert (await describe(wrong.storage, NEW))["live"]["fold_version"] == 2


async def test_what_was_not_rebuilt_cannot_be_switched_to_nor_listed(store: EventStore) -> None:
    with pytest.raises(StateForbidsError, match="not rebuilt"):
        await switch(store.storage, NEW)
    with pytest.raises(StateForbidsError, match="not rebuilt"):
        await difference_rows(store.storage, NEW)
    with pytest.raises(NotFoundError):
        read_model("nobody's")
    assert read_model("user-migrations") is USER_MIGRATIONS_MODEL


@pytest.mark.parametrize("model", READ_MODELS, ids=lambda model: model.name)
async def test_what_is_right_is_rebuilt_without_a_difference(store: EventStore, model: ReadModel) -> None:
    await store.append_events([event for number in range(3) for event in a_migration(f"m-{number}")])
    await model.catch_up(store.storage)
    result = await rebuild(store.storage, model)
    live = (await switch(store.storage, model))["live"]

    assert result.difference is not None
    assert (result.difference.rows, live["table"]) == (0, result.table)
    assert result.difference.same == len(await read(store, model)) > 0 or model.name == "admin-migrations"
    await store.append_events(a_migration("m-4"))
    await model.catch_up(store.storage)
    assert await read(store, model) == await folded(store, model)
    assert {lag.name for lag in await lags(store.storage) if lag.kind == "read-model"} >= {result.table}
    assert len([lag for lag in await lags(store.storage) if lag.kind == "read-model"]) == len(READ_MODELS)


async def test_a_worker_brings_a_newer_fold_to_life_once_and_never_an_older_one(wrong: EventStore) -> None:
    async def fold_version() -> int:
        return int((await describe(wrong.storage, NEW))["live"]["fold_version"])

    async def is_at(version: int) -> bool:
        return await fold_version() == version

    keeping = [asyncio.create_task(keep_up(wrong.storage, model)) for model in (NEW, OLD)]
    try:
        await until(lambda: is_at(2))
        assert await read(wrong, NEW) == await folded(wrong, NEW)
        await switch(wrong.storage, NEW)
        await asyncio.sleep(0.3)
        assert await fold_version() == 1, "an operator's word stands"
        await wrong.append_event(user(99))

        async def reached() -> bool:
            return await OLD.position(wrong.storage) == USERS + 2

        await until(reached)
    finally:
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)


async def test_kept_rows_are_bounded_and_counts_are_not(
    wrong: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert KEPT >= 1000
    monkeypatch.setattr("eventsourcing.differences.KEPT", 2)
    result = await rebuild(wrong.storage, NEW)
    assert result.difference is not None
    assert (result.difference.rows, result.difference.kept) == (4, 2)
    assert [row.key for row in await difference_rows(wrong.storage, NEW)] == ["user-11", "user-20"]
    async with wrong.storage.transaction() as transaction:
        assert await transaction.get(CHECKPOINTS, OLD.first.checkpoint_key) is not None
