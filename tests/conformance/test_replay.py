"""A replay has no outside effect, ends in the state of the first run, and is bounded in what it tries."""

from __future__ import annotations

import asyncio

import pytest

from eventsourcing import (
    AuditEventHandler,
    EventReplay,
    EventReplayConfig,
    EventStore,
    EventType,
    MigrationEventHandler,
    NotFoundError,
    NotificationEventHandler,
)
from eventsourcing.events import BaseEvent
from eventsourcing.query import EventQuery
from eventsourcing.readmodels import MIGRATION_STATISTICS_MODEL
from eventsourcing.replay import ReplayResult
from eventsourcing.replay_runs import run_replay
from eventsourcing.replays import ReplayJournal, ReplayRequest
from eventsourcing.snapshots import newest_snapshot
from eventsourcing.testing import InMemoryHandler, InMemoryNotifications, a_migration

QUICK = EventReplayConfig(max_retries=2, retry_delay=0)


@pytest.fixture
async def migrated(store: EventStore) -> EventStore:
    """A store that holds two finished migrations."""
    await store.append_events(a_migration("migration-a", users=3))
    await store.append_events(a_migration("migration-b", users=1))
    return store


async def test_handlers_that_act_outside_are_left_out(migrated: EventStore) -> None:
    service = InMemoryNotifications()
    replay = EventReplay(migrated)
    replay.add_handler(NotificationEventHandler(service))
    replay.add_handler(AuditEventHandler())

    result = await replay.replay_all_events()

    assert service.sent == []
    assert result.processed_events == result.total_events == 16


async def test_forcing_such_a_handler_is_noticed(migrated: EventStore) -> None:
    """The planted fault: a handler that a replay does call would have sent."""
    service = InMemoryNotifications()
    replay = EventReplay(migrated)
    replay.add_handler(NotificationEventHandler(service), force=True)

    await replay.replay_all_events()

    assert len(service.sent) == 2


async def test_a_plain_function_is_never_replayed(store: EventStore) -> None:
    async def function(event: BaseEvent) -> None:
        raise AssertionError(event)

    with pytest.raises(TypeError, match="plain functions are never replayed"):
        EventReplay(store).add_handler(function)  # type: ignore[arg-type]  # the mistake in question


async def test_a_replay_ends_in_the_state_of_the_first_run(migrated: EventStore) -> None:
    live = MigrationEventHandler()
    for migration_id in ("migration-a", "migration-b"):
        started = (await migrated.get_events(migration_id))[0]
        for event in [started, *await migrated.get_events_by_correlation_id(started.event_id)]:
            await live.handle(event)
    first, second = MigrationEventHandler(), MigrationEventHandler()
    hashes = []
    for handler, batch_size in ((first, 1), (second, 7)):
        replay = EventReplay(migrated, EventReplayConfig(batch_size=batch_size))
        replay.add_handler(handler)
        hashes.append((await replay.replay_all_events()).state_hashes)

    assert first.state() == second.state() == live.state()
    assert hashes[0] == hashes[1]


async def test_a_replay_into_a_live_handler_counts_nothing_twice(migrated: EventStore) -> None:
    handler = MigrationEventHandler()
    replay = EventReplay(migrated)
    replay.add_handler(handler)
    await replay.replay_events_by_type([EventType.USER_MIGRATED])
    await replay.replay_all_events()
    once = handler.get_all_migration_stats()

    await replay.replay_all_events()

    assert handler.get_all_migration_stats() == once
    assert once["migration-a"]["user_count"] == 3


async def test_a_handler_that_fails_is_tried_again_and_no_further(migrated: EventStore) -> None:
    handler = InMemoryHandler(
        [EventType.MIGRATION_FAILED, EventType.USER_MIGRATED], fails=lambda _: OSError("no")
    )
    replay = EventReplay(migrated, QUICK)
    replay.add_handler(handler)

    result = await replay.replay_all_events()

    assert handler.calls == 4 * (1 + QUICK.max_retries)
    assert (result.failed_events, result.processed_events) == (4, 12)
    assert {error["attempts"] for error in result.errors} == {3}


async def test_stop_on_error_ends_the_replay_at_the_first_failure(migrated: EventStore) -> None:
    handler = InMemoryHandler([EventType.USER_MIGRATED], fails=lambda _: ValueError("no"))
    replay = EventReplay(migrated, QUICK.model_copy(update={"stop_on_error": True}))
    replay.add_handler(handler)

    result = await replay.replay_all_events()

    assert result.stopped
    assert result.failed_events == 1
    assert result.total_events == 5


async def test_a_replay_of_nothing_succeeds_with_nothing(store: EventStore) -> None:
    result = await EventReplay(store).replay_all_events()

    assert (result.total_events, result.success_rate, result.errors) == (0, 0.0, [])


async def test_a_report_can_stop_a_replay(migrated: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventsourcing.replay.REPORT_S", 0.0)
    seen: list[int] = []

    async def stop(result: ReplayResult) -> bool:
        seen.append(result.total_events)
        return len(seen) < 2

    replay = EventReplay(migrated, EventReplayConfig(batch_size=2))
    result = await replay.replay(EventQuery(), report=stop)

    assert seen == [2, 4]
    assert result.stopped
    assert result.progress < 100


async def test_a_named_replay_keeps_its_row_from_pending_to_completed(migrated: EventStore) -> None:
    journal = ReplayJournal(migrated.storage)
    first = await journal.create(ReplayRequest(replay_type="aggregate", aggregate_id="migration-a"))
    second = await journal.create(ReplayRequest(replay_type="all", dry_run=True))
    pending = await journal.get(first)
    assert pending is not None
    assert pending["status"] == "pending"

    row = await run_replay(migrated, first)
    again = await run_replay(migrated, first)

    assert (row["status"], row["total_events"], row["progress"]) == ("completed", 6, 100.0)
    assert again == row
    assert [entry["replay_id"] for entry in await journal.page(limit=10)] == [second, first]
    assert (await run_replay(migrated, second))["state_hashes"] == {}


async def test_a_pending_replay_is_cancelled_at_once_and_an_ended_one_not_at_all(
    migrated: EventStore,
) -> None:
    journal = ReplayJournal(migrated.storage)
    replay_id = await journal.create(ReplayRequest(replay_type="all"))

    assert await journal.request_cancel(replay_id)
    assert not await journal.request_cancel(replay_id)
    assert (await run_replay(migrated, replay_id))["status"] == "cancelled"


async def test_a_replay_that_pauses_long_keeps_its_heartbeat(
    migrated: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventsourcing.replay_runs.BEAT_S", 0.01)
    monkeypatch.setattr("eventsourcing.replay_runs.WATCH_S", 0.01)
    journal = ReplayJournal(migrated.storage)
    replay_id = await journal.create(
        ReplayRequest(replay_type="all", batch_size=8, delay_between_batches=0.3, dry_run=True)
    )
    running = asyncio.create_task(run_replay(migrated, replay_id))
    beats = set()
    while not running.done():
        row = await journal.get(replay_id)
        assert row is not None
        beats.add(row.get("heartbeat_at"))
        await asyncio.sleep(0.02)

    assert len(beats) > 3
    assert (await running)["status"] == "completed"


async def test_a_snapshot_equals_the_live_read_model_and_is_kept(migrated: EventStore) -> None:
    await MIGRATION_STATISTICS_MODEL.catch_up(migrated.storage)
    live = await MIGRATION_STATISTICS_MODEL.stats(migrated.storage, "migration-a")

    snapshot = await EventReplay(migrated).create_snapshot("migration-a")
    kept = await newest_snapshot(migrated.storage, "migration-a")

    assert snapshot["state"] == live
    assert kept is not None
    assert (kept["version"], kept["state"]) == (6, live)


async def test_a_snapshot_up_to_a_version_knows_nothing_later(migrated: EventStore) -> None:
    snapshot = await EventReplay(migrated).create_snapshot("migration-a", up_to_version=2)

    assert (snapshot["version"], snapshot["state"]["status"]) == (2, "started")
    assert snapshot["state"]["user_count"] == 0


async def test_a_snapshot_of_nothing_is_refused(store: EventStore) -> None:
    with pytest.raises(NotFoundError, match="nobody"):
        await EventReplay(store).create_snapshot("nobody")

    assert await newest_snapshot(store.storage, "nobody") is None


async def test_a_replay_broken_off_within_a_batch_has_counted_what_it_did(migrated: EventStore) -> None:
    """Whoever goes on from there handles no event twice, and leaves none out."""
    faults: dict[int, BaseException] = {3: ValueError("not this one"), 6: asyncio.CancelledError()}
    handled: list[BaseEvent] = []

    class Breaking(InMemoryHandler):
        async def handle(self, event: BaseEvent) -> None:
            if fault := faults.pop(len(handled) + 1, None):
                if isinstance(fault, Exception):
                    handled.append(event)
                raise fault
            handled.append(event)

    result = ReplayResult(horizon=await migrated.horizon())
    replay = EventReplay(migrated, EventReplayConfig(max_retries=0))
    replay.add_handler(Breaking())

    with pytest.raises(asyncio.CancelledError):
        await replay.replay(EventQuery(), going_on=result)
    assert (result.total_events, result.processed_events, result.failed_events) == (5, 4, 1)

    await replay.replay(EventQuery(), going_on=result)
    assert (result.total_events, result.processed_events, result.failed_events) == (16, 15, 1)
    assert handled == [event async for event in migrated.read(EventQuery())]
