"""Streams that break a process model: the sensor names each once, and the job's run says what it was."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from eventsourcing.bootstrap import open_system
from eventsourcing.events import new_event_id
from eventsourcing.process_clock import OVERDUE
from eventsourcing.testing import a_migration
from pipelines import processes
from pipelines.jobs import check_processes
from pipelines.processes import broken_processes, overdue_processes
from tests.pipelines.conftest import Append, RunJob


def _tick(cursor: str | None) -> dg.SensorResult:
    with dg.DagsterInstance.ephemeral() as instance:
        result = broken_processes(dg.build_sensor_context(instance=instance, cursor=cursor))
    assert isinstance(result, dg.SensorResult)
    return result


def _skipping(migration_id: str) -> Any:
    started, _, transformed, *rest = a_migration(migration_id)
    return [started, transformed, *rest]


def test_first_nothing_new_and_new(append: Append) -> None:
    append(_skipping("history"))
    first = _tick(None)
    assert not first.run_requests
    assert not _tick(first.cursor).run_requests
    append(a_migration("good"))
    stored = append(_skipping("bad"))
    asked = _tick(first.cursor)
    assert asked.run_requests is not None
    (request,) = asked.run_requests
    assert request.run_key == f"migration-{stored[1].position}"
    assert request.tags["aggregate_id"] == "bad"
    assert request.tags["position"] == str(stored[1].position)
    assert dg.validate_run_config(check_processes, request.run_config)
    assert not _tick(asked.cursor).run_requests


def test_what_the_clock_noted_has_a_run_each(append: Append) -> None:
    append(a_migration("m-1"))

    def tick(cursor: str | None) -> dg.SensorResult:
        with dg.DagsterInstance.ephemeral() as instance:
            result = overdue_processes(dg.build_sensor_context(instance=instance, cursor=cursor))
        assert isinstance(result, dg.SensorResult)
        return result

    async def note(subject: str, position: int) -> None:
        async with open_system() as system:
            await system.store.initialize()
            async with system.store.storage.transaction() as transaction:
                row = {"model": "migration", "subject": subject, "position": position}
                await transaction.put(OVERDUE, str(new_event_id()), row)

    empty = tick(None)
    assert not empty.run_requests
    asyncio.run(note("m-1", 7))
    assert not tick(None).run_requests, "a fresh home starts behind what was told"
    asked = tick(empty.cursor)
    (request,) = asked.run_requests or []
    assert (request.run_key, request.tags["aggregate_id"]) == ("migration-7-overdue", "m-1")
    assert dg.validate_run_config(check_processes, request.run_config)
    assert not tick(asked.cursor).run_requests
    asyncio.run(note("m-2", 9))
    assert [request.tags["aggregate_id"] for request in tick(asked.cursor).run_requests or []] == ["m-2"]


def test_the_run_names_the_first_event_that_broke_the_rules(append: Append, run_job: RunJob) -> None:
    stored = append(_skipping("bad"))
    for config in ({"aggregate_id": "bad"}, {}):
        result = run_job("check_processes", {"ops": {"keep_to_process": {"config": config}}})
        (failed,) = result.filter_events(lambda event: event.is_step_failure)
        failure = failed.step_failure_data.user_failure_data
        assert failure is not None
        assert f"'bad' broke 'migration' at position {stored[1].position}" in str(failure.description)
        assert "found data.transformed (unexpected)" in str(failure.description)
        table = failure.metadata["violations"].value
        assert isinstance(table, dg.TableMetadataValue)
        (row,) = table.records
        assert row.data["event_version"] == 2


def test_what_keeps_to_its_model_is_counted(append: Append, run_job: RunJob) -> None:
    append(a_migration("good"))
    result = run_job("check_processes", {"ops": {"keep_to_process": {"config": {}}}})
    assert result.success
    (output,) = [event for event in result.all_node_events if event.is_successful_output]
    metadata = output.step_output_data.metadata
    assert (metadata["subjects"].value, metadata["broken"].value) == (1, 0)


def test_an_unknown_model_is_one_line(run_job: RunJob) -> None:
    result = run_job("check_processes", {"ops": {"keep_to_process": {"config": {"model": "none"}}}})
    assert not result.success


@pytest.mark.parametrize("seed", range(3))
def test_the_cursor_loses_and_repeats_nothing(
    append: Append, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Ticks in between appends, some done twice as after a crash, in windows and batches of every size."""
    rng, asked, twice = random.Random(seed), list[str](), set[str]()
    cursor, expected = str(_tick(None).cursor), set[str]()
    for number in range(12):
        monkeypatch.setattr(processes, "BATCH", rng.randint(1, 3))
        monkeypatch.setattr(processes, "WINDOW", rng.choice([1, 5, 1000]))
        if rng.random() < 0.7:
            stored = append(_skipping(f"m-{number}"))
            expected.add(f"migration-{stored[1].position}")
        result = _tick(cursor)
        keys = [str(request.run_key) for request in result.run_requests or []]
        if rng.random() < 0.3:
            twice |= set(keys)
            continue  # the tick was lost before its cursor was kept: the run keys see to it
        asked += keys
        cursor = str(result.cursor)
    while cursor != (result := _tick(cursor)).cursor:
        asked += [str(request.run_key) for request in result.run_requests or []]
        cursor = str(result.cursor)
    assert sorted(asked) == sorted(expected)
    assert twice <= expected


def test_snapshots_of_what_ended_lately(append: Append, run_job: RunJob, data_dir: Path) -> None:
    append(a_migration("m-1"))
    config = {"ops": {"create_snapshots": {"config": {"days": 1}}}}
    made = []
    for _ in range(2):
        result = run_job("snapshot_migrations", config)
        (output,) = [event for event in result.all_node_events if event.is_successful_output]
        made.append(output.step_output_data.metadata["snapshots"].value)
    assert made == [1, 0], "nothing went on since"
    assert data_dir.exists()

    async def stored() -> Any:
        from eventsourcing.snapshots import newest_snapshot

        async with open_system() as system:
            return await newest_snapshot(system.store.storage, "m-1")

    assert asyncio.run(stored())["version"] == 6
