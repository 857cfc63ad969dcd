"""Workers killed in the middle of their work: another goes on, and every effect is there exactly once."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path

from eventsourcing import EventStore, UserMigratedEvent
from eventsourcing.folds import State, fold_events
from eventsourcing.readmodels import READ_MODELS, ReadModel
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.testing import a_migration
from tests.waiting import until

USERS, BATCH = 12_000, 500


def worker(url: str, data_dir: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "api.cli", "worker"],
        env={**os.environ, "DATABASE_URL": url, "ESM_DATA_DIR": str(data_dir), "LOG_LEVEL": "ERROR"},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def user(number: int) -> UserMigratedEvent:
    return UserMigratedEvent(
        user_id=f"user-{number % 3_000}", username=f"name-{number}", source_data={"n": number}, target_data={}
    )


async def states(store: EventStore, model: ReadModel) -> dict[str, State]:
    found: dict[str, State] = {}
    async with store.storage.transaction() as transaction:
        while rows := await transaction.scan(model.table, after=max(found, default=None)):
            found.update(rows)
    return found


async def test_read_models_are_exact_after_workers_were_killed_while_another_stood_by(
    store_url: str, tmp_path: Path
) -> None:
    chance = random.Random(4)
    async with EventStore(storage=PostgresStorage(store_url)) as store:
        workers = [worker(store_url, tmp_path) for _ in range(2)]
        try:
            started = a_migration()
            await store.append_events(started)
            for place in range(0, USERS, BATCH):
                await store.append_events([user(n).follow(started[0]) for n in range(place, place + BATCH)])
                await asyncio.sleep(chance.uniform(0, 0.3))
                if place % (USERS // 4) == 0:
                    victim = workers.pop(chance.randrange(2))
                    victim.kill()
                    victim.wait()
                    workers.append(worker(store_url, tmp_path))
            head = await store.horizon()

            async def level() -> bool:
                return min([await model.position(store.storage) for model in READ_MODELS]) >= head

            await until(level)
        finally:
            for one in workers:
                one.kill()
                one.wait()

        events = [event async for event in store.get_all_events()]
        for model in READ_MODELS:
            assert await states(store, model) == fold_events(model.fold, events), model.fold.name
