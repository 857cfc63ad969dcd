"""Rebuilding the read models from nothing against the bare loop: read every event, apply the pure fold.

The baseline reads the same pages with the driver alone and folds them in memory, without a checkpoint and
without keeping a state; ours does it durably. Beside it what a call for the statistics costs.
"""

from __future__ import annotations

import time
from functools import partial

from eventsourcing import EventStore, MigrationStartedEvent, UserMigratedEvent
from eventsourcing.folds import State
from eventsourcing.readmodels import EVENT_STATISTICS_MODEL, READ_MODELS, ReadModel
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
