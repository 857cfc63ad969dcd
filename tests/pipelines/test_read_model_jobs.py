"""Rebuilds, verified snapshots and the nightly replay as jobs: each finds exactly what was spoilt."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
import pytest

from eventsourcing.bootstrap import open_system
from eventsourcing.readmodels import USER_MIGRATIONS_MODEL
from eventsourcing.replay import EventReplay
from eventsourcing.snapshots import SNAPSHOTS
from eventsourcing.storage.base import StateTable
from eventsourcing.testing import a_migration
from tests.pipelines.conftest import Append, RunJob

MODEL = USER_MIGRATIONS_MODEL


async def _spoilt(table: StateTable | None, wanted: str, **fields: Any) -> None:
    """Change a row in the database behind everybody's back; None: of the live read model."""
    async with open_system() as system:
        storage = system.store.storage
        await MODEL.catch_up(storage)
        live = (await MODEL.live(storage)).table
        async with storage.transaction() as transaction:
            for key, row in await transaction.scan(table or live):
                if wanted in key:
                    await transaction.put(table or live, key, {**row, **fields})


def _metadata(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    (output,) = [event for event in result.all_node_events if event.is_successful_output]
    return dict(output.step_output_data.metadata)


@contextmanager
def failing(result: dg.ExecuteInProcessResult) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a run failed with."""
    (failed,) = result.filter_events(lambda event: event.is_step_failure)
    failure = failed.step_failure_data.user_failure_data
    assert failure is not None
    yield str(failure.description), dict(failure.metadata)


def _rows(value: Any) -> list[dict[str, Any]]:
    assert isinstance(value, dg.TableMetadataValue)
    return [dict(record.data) for record in value.records]


@pytest.fixture
def migrated(append: Append) -> str:
    append(a_migration("m-1", users=5))
    return "m-1"


def test_a_rebuild_shows_what_differs_and_switches(migrated: str, run_job: RunJob) -> None:
    asyncio.run(_spoilt(None, f"user-{migrated}-3", username="wrong"))
    config: dict[str, Any] = {"ops": {"rebuild_read_model": {"config": {"name": MODEL.name}}}}
    first = _metadata(run_job("rebuild", config))
    assert (first["rows"].value, first["changed"].value, first["same"].value) == (1, 1, 4)
    assert _rows(first["differences"]) == [
        {"key": f"user-{migrated}-3", "kind": "changed", "fields": "username"}
    ]
    config["ops"]["rebuild_read_model"]["config"] |= {"fresh": True, "switch": True}
    assert run_job("rebuild", config).success
    again = {"ops": {"rebuild_read_model": {"config": {"name": MODEL.name, "fresh": True}}}}
    assert _metadata(run_job("rebuild", again))["rows"].value == 0


def test_a_rebuild_of_nothing_known_is_one_line(run_job: RunJob) -> None:
    config = {"ops": {"rebuild_read_model": {"config": {"name": "nothing"}}}}
    with failing(run_job("rebuild", config)) as (description, _):
        assert description == "no read model 'nothing'"


def test_the_nightly_replay_fails_where_the_live_views_differ(migrated: str, run_job: RunJob) -> None:
    asyncio.run(_spoilt(None, "nobody"))
    config = {"ops": {"replay_events": {"config": {"fail_on_difference": True}}}}
    whole = _metadata(run_job("replay", config))
    assert "state_hashes" in whole["result"].value
    asyncio.run(_spoilt(None, f"user-{migrated}-3", username="wrong"))
    with failing(run_job("replay", config)) as (description, metadata):
        assert description == "the live views differ from the events in 1 row"
        assert metadata["result"].value["difference"][MODEL.name]["changed"] == 1
    config["ops"]["replay_events"]["config"]["fail_on_difference"] = False
    assert run_job("replay", config).success


def test_a_snapshot_that_was_spoilt_is_found(migrated: str, run_job: RunJob) -> None:
    async def taken() -> None:
        async with open_system() as system:
            for version in (2, 6):
                await EventReplay(system.store).create_snapshot(migrated, version)

    asyncio.run(taken())
    config: dict[str, Any] = {"ops": {"hold_snapshots": {"config": {}}}}
    assert _metadata(run_job("verify_snapshots", config))["verified"].value == 2
    asyncio.run(_spoilt(SNAPSHOTS, f"{2:010d}", state={"status": "forged"}))
    with failing(run_job("verify_snapshots", config)) as (description, metadata):
        assert "'m-1'" in description
        assert [row["version"] for row in _rows(metadata["differing"])] == [2]
