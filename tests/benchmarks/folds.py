"""Rebuilding the read models from nothing against the bare loop: read every event, apply the pure fold.

The baseline reads the same pages with the driver alone and folds them in memory, without a checkpoint and
without keeping a state; ours does it durably. Beside it what a call for the statistics costs.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

from eventsourcing import EventStore, MigrationStartedEvent, UserMigratedEvent, rebuilds
from eventsourcing.folds import State
from eventsourcing.readmodels import EVENT_STATISTICS_MODEL, READ_MODELS, USER_MIGRATIONS_MODEL, ReadModel
from eventsourcing.replay_runs import run_replay
from eventsourcing.replays import ReplayJournal, ReplayRequest
from eventsourcing.storage.base import CHECKPOINTS
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.storage.postgres_rows import recorded_event
from tests.benchmarks.measure import Report, bench_server, bench_store, compared, conditions, percentiles

EVENTS = 200_000
CALLS = 200
PAGE = """SELECT event_id, event_type, aggregate_id, aggregate_type, event_version, "timestamp",
                 correlation_id, causation_id, metadata, data, position, recorded_at
          FROM events WHERE position > $1 ORDER BY position LIMIT 5000"""
ROW = {"id": 17, "username": "ann", "note": "n" * 40, "enabled": True, "used_traffic": 1234567890}


async def measure(report: Report) -> None:
    """Rebuild each read model over the user events of one migration, each in a stream of its own."""
    with bench_server() as server:
        async with bench_store(server, "folds") as (store, storage):
            await fill(store, EVENTS)
            await storage.pool.driver.execute("VACUUM ANALYZE events")
            for model in READ_MODELS:
                name = f"rebuild of {model.fold.name} / bare loop"
                report.add(
                    await compared(name, partial(rebuild, storage, model), partial(bare_loop, storage, model))
                )
            users = partial(bare_loop, storage, USER_MIGRATIONS_MODEL)
            beside, shadows = partial(rebuild_beside, storage), partial(replay, store)
            report.add(await compared("rebuild beside the live one, and compared / bare loop", beside, users))
            report.add(await compared("replay into shadows, hash, difference / bare loop", shadows, users))
            cancels = [await cancel(store) for _ in range(20)]
            report.note(f"cancel of a running replay: {percentiles(cancels)}")
            await note_statistics(report, store, storage)
            report.note(await conditions(storage))


async def fill(store: EventStore, count: int) -> None:
    """The user events of one migration."""
    started = MigrationStartedEvent(migration_id="m", source_config={}, target_config={})
    await store.append_event(started)
    for first in range(0, count, 5_000):
        await store.append_events(
            [
                UserMigratedEvent(
                    user_id=f"user-{number}", username="ann", source_data=ROW, target_data=ROW
                ).follow(started)
                for number in range(first, first + 5_000)
            ]
        )


async def rebuild(storage: PostgresStorage, model: ReadModel) -> float:
    """Events a second from an empty read model to the head, states and checkpoints committed."""
    async with storage.transaction() as transaction:
        await transaction.delete(CHECKPOINTS, model.first.checkpoint_key)
    tables = [table.name for table in model.first.tables]
    await storage.pool.driver.execute("DELETE FROM states WHERE table_name = ANY($1)", tables)
    began = time.perf_counter()
    await model.catch_up(storage)
    return EVENTS / (time.perf_counter() - began)


async def bare_loop(storage: PostgresStorage, model: ReadModel) -> float:
    """Events a second of the same fold over bare pages, in memory."""
    fold = model.fold
    states: dict[str, State] = {}
    position, began = 0, time.perf_counter()
    while rows := await storage.pool.fetch(PAGE, position):
        for event in map(recorded_event, rows):
            key = fold.key(event)
            if key is not None:
                fold.apply(states.setdefault(key, fold.initial()), event)
        position = rows[-1]["position"]
    return EVENTS / (time.perf_counter() - began)


async def rebuild_beside(storage: PostgresStorage) -> float:
    """Events a second of a rebuild of the users beside the live ones, compared row by row with them."""
    await USER_MIGRATIONS_MODEL.catch_up(storage)
    result = await rebuilds.rebuild(storage, USER_MIGRATIONS_MODEL, fresh=True)
    assert result.difference is not None
    assert result.difference.rows == 0
    return EVENTS / result.duration


async def replay(store: EventStore) -> float:
    """Events a second of a whole named replay: three folds into shadows, the hash, the difference."""
    replay_id = await ReplayJournal(store.storage).create(ReplayRequest(replay_type="all"))
    began = time.perf_counter()
    row = await run_replay(store, replay_id)
    assert row["status"] == "completed"
    assert {one["rows"] for one in row["difference"].values()} == {0}
    return EVENTS / (time.perf_counter() - began)


async def cancel(store: EventStore) -> float:
    """Seconds from asking a running replay to stop to its end."""
    journal = ReplayJournal(store.storage)
    replay_id = await journal.create(ReplayRequest(replay_type="all"))
    running = asyncio.create_task(run_replay(store, replay_id))
    await asyncio.sleep(0.3)
    began = time.perf_counter()
    await journal.request_cancel(replay_id)
    assert (await running)["status"] == "cancelled"
    return time.perf_counter() - began


async def note_statistics(report: Report, store: EventStore, storage: PostgresStorage) -> None:
    """What `get_event_stats` costs when nobody counted anything yet, and then again and again."""
    async with storage.transaction() as transaction:
        await transaction.delete(CHECKPOINTS, EVENT_STATISTICS_MODEL.first.checkpoint_key)
        await transaction.delete(EVENT_STATISTICS_MODEL.table, "all")
    took = []
    for _ in range(CALLS + 1):
        began = time.perf_counter()
        await store.get_event_stats()
        took.append(time.perf_counter() - began)
    report.note(
        f"get_event_stats, {EVENTS:,} events behind: {took[0] * 1000:.0f} ms; level: {percentiles(took[1:])}"
    )
