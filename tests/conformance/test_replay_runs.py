"""A named replay that ends early goes on from its checkpoint, and ends as an undisturbed one does."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import pytest

from eventsourcing import (
    BusyError,
    EventHandler,
    EventReplay,
    EventStore,
    EventType,
    MigrationEventHandler,
    NotFoundError,
    NotificationEventHandler,
    StateForbidsError,
    UserMigratedEvent,
    plugins,
    register_handler,
    replay,
)
from eventsourcing.canonical import state_hash
from eventsourcing.differences import differing_rows
from eventsourcing.events import BaseEvent
from eventsourcing.folds import USER_MIGRATIONS, MigratedRecordsFold, State
from eventsourcing.readmodels import USER_MIGRATIONS_MODEL
from eventsourcing.rebuilds import rebuild
from eventsourcing.replay_runs import run_replay
from eventsourcing.replays import ReplayJournal, ReplayRequest
from eventsourcing.shadows import Shadow, difference_subject, forget_differences
from eventsourcing.storage.base import StateTable
from eventsourcing.switching import difference_rows
from eventsourcing.testing import InMemoryHandler, InMemoryNotifications, a_migration

NAME = "MigrationEventHandler"


class Counting(EventHandler):
    """A handler that keeps a state of its own, not made of folds: how often it saw each type."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def can_handle(self, event_type: str) -> bool:  # noqa: ARG002 - all are counted
        return True

    async def handle(self, event: BaseEvent) -> None:
        name = str(event.event_type)
        self.counts[name] = self.counts.get(name, 0) + 1

    def fresh(self) -> Self:
        return type(self)()

    def state(self) -> dict[str, Any]:
        return self.counts


@pytest.fixture(autouse=True)
def own_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_handlers", {})


@pytest.fixture
async def filled(store: EventStore) -> EventStore:
    """A store of ten migrations whose live read models are level."""
    for number in range(10):
        await store.append_events(a_migration(f"m-{number}", users=4))
    return store


async def begun(store: EventStore, **request: Any) -> str:
    return await ReplayJournal(store.storage).create(ReplayRequest(**{"replay_type": "all", **request}))


async def in_memory(store: EventStore) -> str:
    handler = MigrationEventHandler()
    replayed = EventReplay(store)
    replayed.add_handler(handler)
    await replayed.replay_all_events()
    return state_hash(handler.state())


async def left_over(store: EventStore, replay_id: str) -> int:
    folds = ("admin-migrations", "migration-statistics", "user-migrations")
    async with store.storage.transaction() as transaction:
        tables = [StateTable(difference_subject(replay_id, NAME, fold)) for fold in folds]
        return sum([await transaction.count(table) for table in tables])


async def test_the_states_in_the_store_are_those_that_the_handler_would_have(filled: EventStore) -> None:
    row = await run_replay(filled, await begun(filled))
    assert row["status"] == "completed"
    assert row["state_hashes"] == {NAME: await in_memory(filled)}
    assert row["difference"].keys() == {"admin-migrations", "migration-statistics", "user-migrations"}
    assert {one["rows"] for one in row["difference"].values()} == {0}
    assert row["difference"]["user-migrations"]["same"] == 40
    assert await left_over(filled, row["replay_id"]) == 0


@pytest.mark.parametrize("seed", range(4))
async def test_a_replay_that_dies_again_and_again_comes_to_the_same_result(
    filled: EventStore, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    register_handler(Counting())
    register_handler(InMemoryHandler([EventType.DATA_IMPORTED], fails=lambda _: ValueError("no")))
    undisturbed = await run_replay(filled, await begun(filled, max_retries=0))
    monkeypatch.setattr(replay, "READ", 3)
    journal, deaths = ReplayJournal(filled.storage), 0
    replay_id = await begun(filled, max_retries=0, batch_size=2)
    while True:
        monkeypatch.setattr(replay, "REPORT_EVENTS", chance.choice([1, 2, 7]))
        dying = chance.randrange(1, 12)

        def die(_: dict[str, Any]) -> None:
            nonlocal dying
            dying -= 1
            if not dying:
                raise ConnectionAbortedError("killed")

        try:
            row = await run_replay(filled, replay_id, on_progress=die)
            break
        except ConnectionAbortedError:
            deaths += 1
            await journal.resume(replay_id)
    assert deaths > 2
    assert row["resumed"] == deaths
    varying = {"replay_id", "request", "start_time", "end_time", "duration", "worked_s", "rate", "owner",
               "heartbeat_at", "resumed", "cancel_requested", "failure"}  # fmt: skip
    assert {name: row[name] for name in row.keys() - varying} == {
        name: undisturbed[name] for name in undisturbed.keys() - varying
    }
    assert row["failed_events"] == 10


async def test_planted_a_checkpoint_without_its_states_is_noticed(
    filled: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: the position moves and the states are not written with it."""
    right = (await run_replay(filled, await begun(filled)))["state_hashes"]
    monkeypatch.setattr(replay, "REPORT_EVENTS", 20)
    monkeypatch.setattr(replay, "READ", 20)
    plain, flushes = Shadow.flush, 0

    async def flush(self: Any, transaction: Any) -> None:
        nonlocal flushes
        flushes += 1
        if flushes != 2:
            await plain(self, transaction)

    monkeypatch.setattr(Shadow, "flush", flush)
    wrong = await run_replay(filled, await begun(filled, batch_size=10))
    assert wrong["state_hashes"] != right
    assert sum(one["rows"] for one in wrong["difference"].values()) > 0


async def test_stop_on_error_is_resumed_with_the_event_that_ended_it(filled: EventStore) -> None:
    broken = True

    def fails(event: BaseEvent) -> Exception | None:
        return ValueError("not yet") if broken and event.aggregate_id == "m-3" else None

    register_handler(InMemoryHandler([EventType.DATA_TRANSFORMED, EventType.MIGRATION_STARTED], fails=fails))
    replay_id = await begun(filled, stop_on_error=True, max_retries=0)
    failed = await run_replay(filled, replay_id)
    assert (failed["status"], failed["failed_events"], failed["total_events"]) == ("failed", 1, 31)
    await ReplayJournal(filled.storage).resume(replay_id)
    again = await run_replay(filled, replay_id)
    assert (again["status"], again["failed_events"], again["total_events"]) == ("failed", 1, 31)
    broken = False
    await ReplayJournal(filled.storage).resume(replay_id)
    done = await run_replay(filled, replay_id)
    assert (done["status"], done["failed_events"], done["errors"]) == ("completed", 0, [])
    assert (done["total_events"], done["processed_events"]) == (100, 100)
    assert done["state_hashes"] == {NAME: await in_memory(filled)}, "no event was folded twice"


@pytest.mark.parametrize("way", ["handler", "pause", "stopper"])
async def test_a_cancel_is_obeyed_within_a_second_and_can_be_taken_back(filled: EventStore, way: str) -> None:
    class Hanging(InMemoryHandler):
        hangs = way == "handler"

        async def handle(self, event: BaseEvent) -> None:  # noqa: ARG002 - it takes its time
            await asyncio.sleep(3600 if self.hangs else 0)

    async def stopper() -> bool:
        return asked

    asked = False
    register_handler(Hanging([EventType.MIGRATION_COMPLETED]))
    pause = 3600 if way == "pause" else 0.05 if way == "stopper" else 0
    replay_id = await begun(filled, delay_between_batches=pause, batch_size=1)
    journal = ReplayJournal(filled.storage)
    running = asyncio.create_task(run_replay(filled, replay_id, should_stop=stopper))
    await asyncio.sleep(0.3)
    with pytest.raises(StateForbidsError, match="running"):
        await journal.resume(replay_id)
    if way == "stopper":
        asked = True
    else:
        assert await journal.request_cancel(replay_id)
    async with asyncio.timeout(20):  # far below what it hangs for
        row = await running

    assert row["status"] == "cancelled"
    assert row["end_time"]
    Hanging.hangs = False
    request = {**row["request"], "delay_between_batches": 0, "batch_size": 100}
    await journal.update(replay_id, request=request)
    await journal.resume(replay_id)
    assert (await run_replay(filled, replay_id))["state_hashes"][NAME] == await in_memory(filled)


async def test_a_process_taken_for_dead_cannot_write_any_more(
    filled: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was only stopped: another one has gone on from its checkpoint, and has completed."""
    monkeypatch.setattr(replay, "REPORT_EVENTS", 5)
    monkeypatch.setattr(replay, "READ", 5)
    journal, waiting, replay_id = ReplayJournal(filled.storage), asyncio.Event(), await begun(filled)

    class Stopped(InMemoryHandler):
        async def handle(self, event: BaseEvent) -> None:  # noqa: ARG002 - it takes its time
            if not waiting.is_set():
                waiting.set()
                await asyncio.sleep(1.0)

    register_handler(Stopped([EventType.MIGRATION_COMPLETED]))
    first = asyncio.create_task(run_replay(filled, replay_id))
    await waiting.wait()
    await journal.update(replay_id, heartbeat_at=datetime.now(UTC) - timedelta(minutes=1))
    row = await journal.get(replay_id)
    assert row is not None
    assert row["status"] == "interrupted"
    await journal.resume(replay_id)
    done = await run_replay(filled, replay_id)
    with pytest.raises(BusyError, match="taken over"):
        await first
    after = await journal.get(replay_id)
    assert after == done
    assert done["state_hashes"][NAME] == await in_memory(filled)


async def test_only_one_of_two_that_begin_together_runs(filled: EventStore) -> None:
    replay_id = await begun(filled)
    rows = await asyncio.gather(*(run_replay(filled, replay_id) for _ in range(3)))
    assert max(row["total_events"] for row in rows) == 100
    final = await ReplayJournal(filled.storage).get(replay_id)
    assert final is not None
    assert (final["status"], final["total_events"]) == ("completed", 100)


async def test_what_is_not_there_or_is_complete_is_not_resumed(filled: EventStore) -> None:
    journal = ReplayJournal(filled.storage)
    with pytest.raises(NotFoundError):
        await journal.resume("replay_20240101_000000_0")
    replay_id = await begun(filled)
    with pytest.raises(StateForbidsError, match="pending"):
        await journal.resume(replay_id)
    await run_replay(filled, replay_id)
    with pytest.raises(StateForbidsError, match="completed"):
        await journal.resume(replay_id)


async def test_differing_rows_go_when_they_are_past_their_time_and_those_of_rebuilds_stay(
    filled: EventStore,
) -> None:
    await USER_MIGRATIONS_MODEL.catch_up(filled.storage)
    async with filled.storage.transaction() as transaction:
        await transaction.put(USER_MIGRATIONS_MODEL.table, "user-x", {"username": "nobody"})
    row = await run_replay(filled, await begun(filled))
    subject = difference_subject(row["replay_id"], NAME, "user-migrations")
    await rebuild(filled.storage, USER_MIGRATIONS_MODEL)
    assert await forget_differences(filled.storage, older_than=timedelta(days=1)) == 0
    assert len(await differing_rows(filled.storage, subject)) == 1
    assert await forget_differences(filled.storage, older_than=timedelta(0)) == 1
    assert await differing_rows(filled.storage, subject) == []
    assert len(await difference_rows(filled.storage, USER_MIGRATIONS_MODEL)) == 1
    assert (await ReplayJournal(filled.storage).get(row["replay_id"]) or {})["difference"] == row[
        "difference"
    ]


async def test_the_difference_names_rows_that_a_live_view_has_wrong(filled: EventStore) -> None:
    await USER_MIGRATIONS_MODEL.catch_up(filled.storage)
    async with filled.storage.transaction() as transaction:
        await transaction.put(USER_MIGRATIONS_MODEL.table, "user-m-3-1", {"username": "somebody"})
        await transaction.delete(USER_MIGRATIONS_MODEL.table, "user-m-4-2")
        await transaction.put(USER_MIGRATIONS_MODEL.table, "user-x", {"username": "nobody"})
    row = await run_replay(filled, await begun(filled))
    found = row["difference"]["user-migrations"]
    assert (found["changed"], found["only_old"], found["only_new"], found["same"]) == (1, 1, 1, 38)
    subject = difference_subject(row["replay_id"], NAME, "user-migrations")
    rows = await differing_rows(filled.storage, subject)
    assert [(one.key, one.kind) for one in rows] == [
        ("user-m-3-1", "changed"), ("user-m-4-2", "only_new"), ("user-x", "only_old"),
    ]  # fmt: skip
    filtered = await run_replay(filled, await begun(filled, from_timestamp="2020-01-01T00:00:00Z"))
    assert filtered["difference"] is None


async def test_events_that_come_while_a_replay_concludes_are_no_difference(
    filled: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Shadow.state_hash

    async def state_hash_and_more(self: Any) -> str:
        await filled.append_events(a_migration("m-late", users=3))
        await USER_MIGRATIONS_MODEL.catch_up(filled.storage)
        return await plain(self)

    right = await in_memory(filled)
    monkeypatch.setattr(Shadow, "state_hash", state_hash_and_more)
    row = await run_replay(filled, await begun(filled))
    assert row["state_hashes"] == {NAME: right}, "the hash is of the horizon at the start"
    assert {one["rows"] for one in row["difference"].values()} == {0}
    assert row["difference"]["user-migrations"]["same"] == 43


async def test_a_handler_that_acts_outside_is_called_only_by_its_name(filled: EventStore) -> None:
    service = InMemoryNotifications()
    register_handler(NotificationEventHandler(service))
    await run_replay(filled, await begun(filled))
    assert service.sent == []
    row = await run_replay(filled, await begun(filled, handlers=["NotificationEventHandler"]))
    assert row["state_hashes"] == {}
    assert len(service.sent) == 10


async def test_a_fold_that_raises_leaves_no_trace_of_the_event(
    filled: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = MigratedRecordsFold.apply

    def apply(self: MigratedRecordsFold, state: State, event: BaseEvent, times: int = 1) -> None:
        plain(self, state, event, times)
        if event.aggregate_id == "user-m-3-1":
            raise KeyError("odd")

    monkeypatch.setattr(MigratedRecordsFold, "apply", apply)
    assert USER_MIGRATIONS.name == "user-migrations"
    row = await run_replay(filled, await begun(filled, replay_type="correlation", correlation_id=(
        await filled.get_events("m-3"))[0].event_id))  # fmt: skip
    assert (row["failed_events"], row["error_count"], row["errors"][0]["attempts"]) == (1, 1, 1)
    assert "KeyError" in row["errors"][0]["error"]
    handler = MigrationEventHandler()
    for event in await filled.get_events_by_correlation_id((await filled.get_events("m-3"))[0].event_id):
        if event.aggregate_id != "user-m-3-1":
            await handler.handle(event)
    assert row["state_hashes"] == {NAME: state_hash(handler.state())}


async def test_a_replay_of_an_aggregate_begins_at_its_snapshot(
    filled: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        await filled.append_event(
            UserMigratedEvent(user_id="u", username=f"n{number}", source_data={}, target_data={})
        )
    await EventReplay(filled).create_snapshot("u", 12)
    whole = await run_replay(filled, await begun(filled, replay_type="aggregate", aggregate_id="u"))
    replay_id = await begun(
        filled, replay_type="aggregate", aggregate_id="u", from_snapshot=True, batch_size=2
    )
    journal = ReplayJournal(filled.storage)
    monkeypatch.setattr(replay, "READ", 2)
    monkeypatch.setattr(replay, "REPORT_EVENTS", 2)

    def die(_: dict[str, Any]) -> None:
        raise ConnectionAbortedError("killed")

    with pytest.raises(ConnectionAbortedError):
        await run_replay(filled, replay_id, on_progress=die)
    await journal.resume(replay_id)
    part = await run_replay(filled, replay_id)
    assert (whole["total_events"], whole["from_snapshot"]) == (20, None)
    assert (part["total_events"], part["from_snapshot"]) == (8, 12)
    assert part["state_hashes"] == whole["state_hashes"]
    with pytest.raises(ValueError, match="from_snapshot"):
        ReplayRequest(replay_type="all", from_snapshot=True)


async def test_what_nobody_resumed_for_a_week_is_forgotten(
    filled: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, ids = ReplayJournal(filled.storage), []
    monkeypatch.setattr(replay, "REPORT_EVENTS", 10)

    def die(_: dict[str, Any]) -> None:
        raise ConnectionAbortedError("killed")

    for _ in range(2):
        ids.append(await begun(filled, batch_size=30))
        with pytest.raises(ConnectionAbortedError):
            await run_replay(filled, ids[-1], on_progress=die)
    for replay_id, days in zip(ids, (8, 6), strict=True):
        await journal.update(replay_id, heartbeat_at=datetime.now(UTC) - timedelta(days=days))
    before = [await left_over(filled, replay_id) for replay_id in ids]
    await run_replay(filled, await begun(filled))
    assert min(before) > 0
    assert [await left_over(filled, replay_id) for replay_id in ids] == [0, before[1]]
    with pytest.raises(StateForbidsError, match="forgotten"):
        await journal.resume(ids[0])
    await journal.resume(ids[1])
    assert (await run_replay(filled, ids[1]))["state_hashes"] == {NAME: await in_memory(filled)}


async def test_errors_are_counted_all_and_shown_the_first(store: EventStore) -> None:
    register_handler(InMemoryHandler([EventType.USER_MIGRATED], fails=lambda _: ValueError("no")))
    await store.append_events(a_migration("m", users=250))
    row = await run_replay(store, await begun(store, max_retries=0))
    assert (row["failed_events"], row["error_count"], len(row["errors"])) == (250, 250, 100)
