"""The ticks of the sensor of completed migrations."""

from __future__ import annotations

import dagster as dg
import pytest

from eventsourcing.errors import CursorAheadError
from eventsourcing.testing import a_migration
from pipelines import sensors
from pipelines.definitions import defs
from pipelines.sensors import completed_migrations
from tests.pipelines.conftest import Append


def _tick(cursor: str | None) -> dg.SensorResult:
    with dg.DagsterInstance.ephemeral() as instance:
        result = completed_migrations(dg.build_sensor_context(instance=instance, cursor=cursor))
    assert isinstance(result, dg.SensorResult)
    return result


def test_the_first_tick_starts_from_now(append: Append) -> None:
    stored = append(a_migration())
    result = _tick(None)
    assert not result.run_requests
    assert result.cursor == str(stored[-1].position)


def test_nothing_new_asks_for_nothing(append: Append) -> None:
    cursor = str(append(a_migration())[-1].position)
    result = _tick(cursor)
    assert not result.run_requests
    assert result.cursor == cursor


def test_a_completed_migration_is_validated_and_snapshotted(append: Append) -> None:
    cursor = str(append(a_migration("migration-1"))[-1].position)
    last = append(a_migration("migration-2"))[-1]
    result = _tick(cursor)
    assert result.run_requests is not None
    requests = {request.job_name: request for request in result.run_requests}
    assert set(requests) == {"validate_sequence", "snapshot"}, "no job ran it: there is no target to verify"
    assert requests["snapshot"].run_key == f"snapshot-{last.position}"
    config = requests["snapshot"].run_config["ops"]["create_snapshot"]["config"]
    assert config == {"aggregate_id": "migration-2"}
    assert requests["snapshot"].tags["migration_id"] == "migration-2"
    assert requests["snapshot"].tags["correlation_id"] == str(last.correlation_id)
    assert result.cursor == str(last.position)


def test_a_tick_reacts_to_a_bounded_number_of_events(append: Append, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "BATCH", 1)
    first = append(a_migration("migration-1"))[-1]
    second = append(a_migration("migration-2"))[-1]
    result = _tick("0")
    assert result.run_requests is not None
    assert {request.tags["migration_id"] for request in result.run_requests} == {"migration-1"}
    assert result.cursor == str(first.position)
    assert _tick(result.cursor).cursor == str(second.position)


def test_a_store_behind_the_cursor_is_an_error_not_nothing_new(append: Append) -> None:
    append(a_migration())
    with pytest.raises(CursorAheadError):
        _tick("1000")


def test_requests_are_configurations_that_the_jobs_take(append: Append) -> None:
    append(a_migration())
    requests = _tick("0").run_requests
    assert requests
    for request in requests:
        assert dg.validate_run_config(_job(str(request.job_name)), request.run_config)


def _job(name: str) -> dg.JobDefinition:
    return defs.resolve_job_def(name)
