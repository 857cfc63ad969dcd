"""`esm events backfill`: the same history from every kind of file, and each wrong row by its number."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from eventsourcing import EventStore
from eventsourcing.event_files import rows_of_file
from eventsourcing.storage.postgres import PostgresStorage
from tests import terminal

Esm = Callable[..., "subprocess.CompletedProcess[str]"]

ROWS: list[dict[str, Any]] = [
    {
        "event_type": "user.migrated",
        "aggregate_id": f"user-{number}",
        "timestamp": f"2024-05-{number:02}T08:00:00Z",
        "data": {"username": f"ü{number}", "source_data": {"id": number}, "target_data": {}},
    }
    for number in range(9, 0, -1)
]


def as_ndjson(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n\n", "utf-8")
    return path


def as_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        columns = [
            "event_type",
            "aggregate_id",
            "timestamp",
            "username",
            "source_data",
            "target_data",
            "note",
        ]
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            data = {name: json.dumps(v) if isinstance(v, dict) else v for name, v in row["data"].items()}
            writer.writerow({**{name: row[name] for name in columns[:3]}, **data, "note": ""})
    return path


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pl.DataFrame([{**row, "data": json.dumps(row["data"])} for row in rows]).write_parquet(path)
    return path


FILES = {"ndjson": as_ndjson, "jsonl": as_ndjson, "csv": as_csv, "parquet": as_parquet}


@pytest.fixture
def esm(store_url: str, tmp_path: Path) -> Esm:
    """Run `esm events …` to its end."""

    return partial(
        terminal.esm, "events", settings={"DATABASE_URL": store_url, "ESM_DATA_DIR": str(tmp_path)}
    )


@pytest.mark.parametrize("kind", FILES)
async def test_each_kind_of_file_holds_the_same_events(kind: str, tmp_path: Path) -> None:
    async with EventStore(use_memory=True) as store:
        file = FILES[kind](tmp_path / f"history.{kind}", ROWS)
        await store.backfill(rows_of_file(file), name="history")
        stored = [event async for event in store.get_all_events()]
    assert [(event.aggregate_id, event.data["username"]) for event in stored] == [
        (f"user-{number}", f"ü{number}") for number in range(1, 10)
    ]
    assert stored[0].data == {
        "username": "ü1",
        "source_data": {"id": 1},
        "target_data": {},
        "migrated_at": "2024-05-01T08:00:00Z",
    }


def test_a_file_is_appended_once_from_the_terminal(esm: Esm, tmp_path: Path) -> None:
    file = as_csv(tmp_path / "history.csv", ROWS)
    first, second = esm("backfill", file), esm("backfill", file)
    listed = esm("list", "--json", "--oldest")

    assert first.returncode == 0, first.stderr
    assert "2024-05-01 to 2024-05-09" in first.stdout
    assert ["│", "appended", "│", "9", "│"] in [line.split() for line in first.stdout.splitlines()]
    assert ["│", "appended", "│", "0", "│"] in [line.split() for line in second.stdout.splitlines()]
    events = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [event["timestamp"] for event in events] == [f"2024-05-{day:02}T08:00:00Z" for day in range(1, 10)]
    assert all(event["metadata"] == {"backfilled": True} for event in events)


def test_wrong_rows_are_named_and_nothing_is_appended(esm: Esm, tmp_path: Path) -> None:
    file = tmp_path / "history.ndjson"
    naive = {**ROWS[0], "timestamp": "2024-05-01T08:00:00"}
    lines = [json.dumps(ROWS[1]), "{", "", json.dumps(naive), "[]"]
    file.write_text("\n".join(lines), "utf-8")

    refused = esm("backfill", file)

    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        "esm: 4 faults in 5 rows; nothing was appended",
        "row 2: the line is not JSON",
        "row 3: the line is empty",
        "row 4: timestamp: names no time zone",
        "row 5: the line is not a JSON object",
    ]
    assert esm("list", "--json").stdout == ""


async def test_a_backfill_killed_on_the_way_is_completed_by_the_same_command(
    esm: Esm, store_url: str, tmp_path: Path
) -> None:
    rows = [{**ROWS[0], "aggregate_id": f"user-{n % 9000}"} for n in range(27_000)]
    for number, row in enumerate(rows):
        row["timestamp"] = (datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=number)).isoformat()
    file = as_ndjson(tmp_path / "history.ndjson", rows[::-1])
    environment = {**os.environ, "DATABASE_URL": store_url, "ESM_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "api.cli", "events", "backfill", str(file)]
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.DEVNULL
    )
    async with EventStore(storage=PostgresStorage(store_url)) as store, asyncio.timeout(60):
        while await store.horizon() == 0:  # noqa: ASYNC110 - another process appends
            await asyncio.sleep(0.01)
        process.kill()
        await process.wait()
        left = [event async for event in store.get_all_events()]
        completed = await asyncio.to_thread(esm, "backfill", file)
        stored = [event async for event in store.get_all_events()]

    assert 0 < len(left) < len(rows)
    assert completed.returncode == 0, completed.stderr
    assert stored[: len(left)] == left
    assert [(e.aggregate_id, e.event_version, e.timestamp.isoformat()) for e in stored] == [
        (row["aggregate_id"], 1 + number // 9000, row["timestamp"]) for number, row in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("history.txt", "", "is none of .ndjson, .jsonl, .csv, .parquet"),
        ("history.parquet", "no parquet", "cannot be read"),
        ("missing.csv", None, "is not a file"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_line(
    esm: Esm, tmp_path: Path, name: str, content: str | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    refused = esm("backfill", tmp_path / name)
    assert refused.returncode == 1
    [line] = refused.stderr.splitlines()
    assert reason in line


def test_dates_in_a_named_zone(esm: Esm, tmp_path: Path) -> None:
    file = as_csv(tmp_path / "history.csv", [{**ROWS[0], "timestamp": "2024-05-01 08:00:00"}])
    assert "Nowhere/City is no time zone" in esm("backfill", file, "--timezone", "Nowhere/City").stderr
    assert esm("backfill", file, "--timezone", "Europe/Berlin").returncode == 0
    [event] = [json.loads(line) for line in esm("list", "--json").stdout.splitlines()]
    assert event["timestamp"] == "2024-05-01T06:00:00Z"
