"""Replay, snapshot and sequence validation as jobs on real PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import dagster as dg
import pytest

from eventsourcing import Settings
from eventsourcing.bootstrap import open_system
from eventsourcing.catalogue import MIGRATION_SEQUENCE
from eventsourcing.differences import DIFFERENCES
from eventsourcing.replays import ReplayJournal, ReplayRequest
from eventsourcing.shadows import difference_subject
from eventsourcing.snapshots import newest_snapshot
from eventsourcing.testing import a_migration
from resources.results import JobResults
from tests.pipelines.conftest import Append, RunJob


def test_a_replay_runs_the_row_that_asks_for_it(append: Append, run_job: RunJob) -> None:
    append(a_migration())
    replay_id = asyncio.run(_new_replay())
    with dg.DagsterInstance.ephemeral() as instance:
        result = run_job("replay", _ops("replay_events", replay_id=replay_id), instance=instance)
        run = instance.get_run_by_id(result.run_id)
    assert result.success
    row = asyncio.run(_replay(replay_id))
    assert (row["status"], row["processed_events"], row["failed_events"]) == ("completed", 8, 0)
    assert row["dagster_run_id"] == result.run_id
    assert run is not None
    assert run.tags["replay_id"] == replay_id


def test_a_replay_from_the_ui_makes_its_own_row(append: Append, run_job: RunJob) -> None:
    append(a_migration())
    request = {"replay_type": "type", "event_types": ["user.migrated"]}
    with dg.DagsterInstance.ephemeral() as instance:
        result = run_job("replay", _ops("replay_events", request=request), instance=instance)
        run = instance.get_run_by_id(result.run_id)
    assert run is not None
    assert asyncio.run(_replay(run.tags["replay_id"]))["processed_events"] == 2


def test_a_replay_removes_the_differing_rows_of_older_ones(
    append: Append, run_job: RunJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(a_migration())
    monkeypatch.setenv("ESM_DIFFERENCE_DAYS", "2")
    place = difference_subject("replay_20200101_000000_0", "migrations", "user-migrations")

    async def old_and_young() -> None:
        async with open_system() as system:
            async with system.store.storage.transaction() as transaction:
                await transaction.put_many(
                    DIFFERENCES, {f"{place}\x1e{name}": {} for name in ("old", "young")}
                )
            url = str(Settings.load().database_url).replace("+asyncpg", "")
            connection = await asyncpg.connect(url)
            aged = "UPDATE states SET changed_at = now() - interval '3 days' WHERE key LIKE '%old'"
            await connection.execute(aged)
            await connection.close()

    async def left() -> list[str]:
        async with open_system() as system, system.store.storage.transaction() as transaction:
            return [key.rpartition("\x1e")[2] for key, _ in await transaction.scan(DIFFERENCES)]

    asyncio.run(old_and_young())
    assert run_job("replay", _ops("replay_events", request={"replay_type": "all", "dry_run": True})).success
    assert asyncio.run(left()) == ["young"]


def test_a_replay_that_nobody_asked_for_fails(run_job: RunJob) -> None:
    result = run_job("replay", _ops("replay_events", replay_id="replay_20200101_000000_0"))
    assert _failure(result) == "no replay 'replay_20200101_000000_0'"


def test_a_wrong_request_is_one_line(run_job: RunJob) -> None:
    result = run_job("replay", _ops("replay_events", request={"replay_type": "some"}))
    assert _failure(result).startswith("replay_type: Input should be")


def test_a_snapshot_is_stored_and_answered(append: Append, run_job: RunJob) -> None:
    append(a_migration())
    config = _ops("create_snapshot", aggregate_id="migration-123", result_id="r-1", up_to_version=2)
    result = run_job("snapshot", config)
    assert result.success
    answer = asyncio.run(_result("r-1"))
    assert answer is not None
    assert answer["result"]["version"] == 2
    assert asyncio.run(_snapshot("migration-123")) == answer["result"]
    (output,) = [event for event in result.all_node_events if event.is_successful_output]
    assert output.step_output_data.metadata["result"].value == answer["result"]


def test_a_snapshot_of_nothing_is_an_error_kept(run_job: RunJob) -> None:
    result = run_job("snapshot", _ops("create_snapshot", aggregate_id="nobody", result_id="r-2"))
    assert not result.success
    assert asyncio.run(_result("r-2")) == {"error": {"kind": "not_found", "message": "no aggregate 'nobody'"}}


def test_a_sequence_is_validated(append: Append, run_job: RunJob) -> None:
    append(a_migration())
    config = _ops(
        "validate_sequence",
        aggregate_id="migration-123",
        expected_sequence=[str(event_type) for event_type in MIGRATION_SEQUENCE],
        result_id="r-3",
    )
    assert run_job("validate_sequence", config).success
    answer = asyncio.run(_result("r-3"))
    assert answer is not None
    assert answer["result"]["is_valid"]


def test_without_a_result_id_the_result_has_the_runs_id(append: Append, run_job: RunJob) -> None:
    append(a_migration())
    config = _ops("validate_sequence", aggregate_id="migration-123", expected_sequence=["user.migrated"])
    result = run_job("validate_sequence", config)
    answer = asyncio.run(_result(result.run_id))
    assert result.success
    assert answer is not None
    assert not answer["result"]["is_valid"]


def test_a_sequence_of_nothing_is_an_error_kept(run_job: RunJob) -> None:
    config = _ops("validate_sequence", aggregate_id="nobody", expected_sequence=[], result_id="r-4")
    assert not run_job("validate_sequence", config).success
    answer = asyncio.run(_result("r-4"))
    assert answer is not None
    assert answer["error"]["kind"] == "not_found"


def _ops(op: str, **config: Any) -> dict[str, Any]:
    return {"ops": {op: {"config": config}}}


def _failure(result: dg.ExecuteInProcessResult) -> str:
    (failed,) = result.filter_events(lambda event: event.is_step_failure)
    failure = failed.step_failure_data.user_failure_data
    assert failure is not None
    return str(failure.description)


async def _new_replay() -> str:
    async with open_system() as system:
        return await ReplayJournal(system.store.storage).create(ReplayRequest(replay_type="all"))


async def _replay(replay_id: str) -> dict[str, Any]:
    async with open_system() as system:
        row = await ReplayJournal(system.store.storage).get(replay_id)
    assert row is not None
    return row


async def _result(result_id: str) -> dict[str, Any] | None:
    async with open_system() as system:
        return await JobResults(system.store.storage).get(result_id)


async def _snapshot(aggregate_id: str) -> dict[str, Any] | None:
    async with open_system() as system:
        return await newest_snapshot(system.store.storage, aggregate_id)
