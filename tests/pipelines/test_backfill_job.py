"""The backfill as a job: once, whole or not at all, from the source directory and from nowhere else."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import dagster as dg

from eventsourcing.bootstrap import open_system
from tests.pipelines.conftest import RunJob


def config(**values: Any) -> dict[str, Any]:
    return {"ops": {"backfill_events": {"config": values}}}


def write(folder: Path, *rows: dict[str, Any], name: str = "history.ndjson") -> None:
    sources = folder / "sources"
    sources.mkdir(exist_ok=True)
    (sources / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def moved(number: int, **changes: Any) -> dict[str, Any]:
    data = {"username": "ann", "source_data": {}, "target_data": {}}
    fields = {"event_type": "user.migrated", "aggregate_id": f"user-{number}", "data": data}
    return {**fields, "timestamp": f"2019-03-{number:02d}T10:00:00Z", **changes}


def stored() -> list[str]:
    async def read() -> list[str]:
        async with open_system() as system:
            events = [event async for event in system.store.get_all_events()]
        assert all(event.metadata["backfilled"] and event.timestamp.year == 2019 for event in events)
        return [event.aggregate_id for event in events]

    return asyncio.run(read())


def metadata(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    (event,) = (event for event in result.all_events if event.is_successful_output)
    return {name: value.value for name, value in event.step_output_data.metadata.items()}


def test_a_file_is_appended_once_however_often_the_job_runs(data_dir: Path, run_job: RunJob) -> None:
    write(data_dir, moved(2), moved(1))
    first = run_job("backfill", config(file="history.ndjson"))
    second = run_job("backfill", config(file="history.ndjson"))
    assert first.success
    assert second.success
    assert stored() == ["user-1", "user-2"]
    assert (metadata(first)["appended"], metadata(second)["appended"]) == (2, 0)


def test_one_wrong_row_stops_all_of_it(data_dir: Path, run_job: RunJob) -> None:
    write(data_dir, moved(1), moved(2, timestamp="2019-03-04 10:00"))
    assert not run_job("backfill", config(file="history.ndjson")).success
    assert stored() == []
    assert run_job("backfill", config(file="history.ndjson", timezone="Europe/Berlin")).success


def test_no_file_outside_the_source_directory_is_read(data_dir: Path, run_job: RunJob) -> None:
    write(data_dir, moved(1))
    (data_dir / "outside.ndjson").write_text(json.dumps(moved(1)) + "\n", "utf-8")
    for name in ("../outside.ndjson", str(data_dir / "outside.ndjson"), "missing.ndjson"):
        assert not run_job("backfill", config(file=name)).success
    assert not run_job("backfill", config(file="history.ndjson", timezone="Mars/Base")).success
    assert stored() == []
