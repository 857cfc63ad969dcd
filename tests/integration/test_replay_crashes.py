"""A replay killed by `kill -9` again and again: resumed, it ends as an undisturbed one, and tells nobody."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from eventsourcing import EventStore
from eventsourcing.replays import ReplayJournal, ReplayRequest
from eventsourcing.storage.postgres import PostgresStorage

PIECE, NEVER = 100_000, 1000.0

REPLAYER = """
import asyncio, os, random, signal, sys, threading
from eventsourcing import EventStore, NotificationEventHandler, register_handler, replay
from eventsourcing.bootstrap import collect_rarely
from eventsourcing.replay_runs import run_replay
from eventsourcing.storage.postgres import PostgresStorage
from tests.peak import peak_memory_mb

class Told:
    async def send_notification(self, title, message, details=None, priority="normal"):
        print("told", title, flush=True)

def progress(row):
    print("at", row["progress"], round(peak_memory_mb()), flush=True)
    if row["progress"] >= float(sys.argv[3]):
        within = random.uniform(0, 0.2)  # wherever it is then: folding, committing, concluding
        threading.Timer(within, os.kill, (os.getpid(), signal.SIGKILL)).start()

async def main(url, replay_id):
    replay.REPORT_EVENTS = int(sys.argv[4])
    register_handler(NotificationEventHandler(Told()))
    async with EventStore(storage=PostgresStorage(url)) as store:
        row = await run_replay(store, replay_id, on_progress=progress)
    print("ended", row["status"], round(peak_memory_mb()), flush=True)

collect_rarely()
asyncio.run(main(*sys.argv[1:3]))
"""


async def fill(store: EventStore, count: int) -> None:
    """Users of one migration and now and then a migration that ends, as columns."""
    for start in range(0, count, PIECE):
        rows = pl.DataFrame({"n": range(start, min(start + PIECE, count))})
        ended = pl.col("n") % 1000 == 999
        user = pl.struct(
            username=pl.format("name{}", "n"),
            source_data=pl.struct(id=pl.col("n"), note=pl.lit("x" * 120)),
            target_data=pl.struct(id=pl.col("n")),
            migration_id=pl.lit("m-1"),
        ).struct.json_encode()
        end = pl.struct(
            statistics=pl.struct(n=pl.col("n")), duration_seconds=pl.lit(1.5)
        ).struct.json_encode()
        frame = rows.select(
            event_type=pl.when(ended).then(pl.lit("migration.completed")).otherwise(pl.lit("user.migrated")),
            aggregate_id=pl.when(ended)
            .then(pl.format("m-{}", "n"))
            .otherwise(pl.format("user-{}", pl.col("n") % (count * 9 // 10))),
            aggregate_type=pl.when(ended).then(pl.lit("migration")).otherwise(pl.lit("user")),
            data=pl.when(ended).then(end).otherwise(user),
        )
        await store.append_frame(frame, name=f"fill-{start}")


def replayer(url: str, replay_id: str, percent: float, report: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", REPLAYER, url, replay_id, str(percent), str(report)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "ESM_DATA_DIR": "/nonexistent"},
        cwd=Path(__file__).parents[2],
    )


def run_until(url: str, replay_id: str, percent: float, report: int) -> tuple[list[str], int]:
    """What a replayer printed, killed soon after it is so far, and its peak of memory by then, in MB."""
    with replayer(url, replay_id, percent, report) as process:
        assert process.stdout is not None
        lines = [line.strip() for line in process.stdout]
    return lines, max(int(line.rpartition(" ")[2]) for line in lines if line.startswith(("at", "ended")))


async def killed_and_resumed(
    store: EventStore, url: str, percents: list[float], *, report: int
) -> tuple[dict[str, Any], dict[str, Any], list[str], int]:
    """The rows of an undisturbed replay and of a killed one, what both printed, the highest memory."""
    journal = ReplayJournal(store.storage)
    undisturbed = await journal.create(ReplayRequest(replay_type="all"))
    said, peak = await asyncio.to_thread(run_until, url, undisturbed, NEVER, report)
    replay_id = await journal.create(ReplayRequest(replay_type="all"))
    for percent in [*percents, NEVER]:
        lines, memory = await asyncio.to_thread(run_until, url, replay_id, percent, report)
        said, peak = said + lines, max(peak, memory)
        if percent != NEVER:
            row = await journal.get(replay_id)
            assert row is not None
            assert row["status"] == "running", "nobody has missed its heartbeat yet"
            await journal.update(replay_id, heartbeat_at="2024-05-01T12:00:00Z")  # as if 15 s had gone by
            await journal.resume(replay_id)
    rows = [await journal.get(undisturbed), await journal.get(replay_id)]
    assert rows[0] is not None
    assert rows[1] is not None
    return rows[0], rows[1], said, peak


def agree(undisturbed: dict[str, Any], killed: dict[str, Any], said: list[str], count: int) -> None:
    assert (undisturbed["status"], killed["status"]) == ("completed", "completed")
    assert killed["state_hashes"] == undisturbed["state_hashes"]
    assert killed["total_events"] == undisturbed["total_events"] == count
    assert killed["failed_events"] == 0
    assert {one["rows"] for one in killed["difference"].values()} == {0}
    assert [line for line in said if line.startswith("told")] == []


@pytest.mark.timeout(300)  # five processes, one after the other, each over everything
async def test_a_killed_replay_is_resumed_to_the_same_state(store_url: str) -> None:
    async with EventStore(storage=PostgresStorage(store_url)) as store:
        await fill(store, 60_000)
        undisturbed, killed, said, _ = await killed_and_resumed(store, store_url, [20, 60, 90], report=5_000)
        agree(undisturbed, killed, said, 60_000)
        assert killed["resumed"] == 3


@pytest.mark.chaos
@pytest.mark.timeout(1800)
async def test_a_million_events_killed_at_30_60_and_90_percent(store_url: str) -> None:
    async with EventStore(storage=PostgresStorage(store_url)) as store:
        await fill(store, 1_000_000)
        began = time.monotonic()
        undisturbed, killed, said, peak = await killed_and_resumed(
            store, store_url, [30, 60, 90], report=20_000
        )
        agree(undisturbed, killed, said, 1_000_000)
        assert killed["resumed"] == 3
        assert peak < 400, f"{peak} MB"
        print(  # noqa: T201 - the figures of a long run
            f"\n1,000,000 events: {undisturbed['rate']:,.0f}/s undisturbed, {killed['rate']:,.0f}/s "
            f"with three kills, both runs and conclusions {time.monotonic() - began:.0f} s, peak {peak} MB"
        )
