"""What the schedules ask for, and when they do not."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from pipelines.jobs import check_processes, replay, snapshot_migrations
from pipelines.schedules import SCHEDULES, nightly_processes, nightly_replay, nightly_snapshots

NIGHT = datetime(2024, 5, 1, 2, tzinfo=UTC)


def _context(instance: dg.DagsterInstance) -> dg.ScheduleEvaluationContext:
    return dg.build_schedule_context(instance=instance, scheduled_execution_time=NIGHT)


def test_the_nightly_replay_takes_everything_and_fails_on_a_difference(tmp_path: Path) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        request = nightly_replay(_context(instance))
    assert isinstance(request, dg.RunRequest)
    assert request.run_key == "2024-05-01"
    config = dg.validate_run_config(replay, request.run_config)["ops"]["replay_events"]["config"]
    assert config["request"] == {"replay_type": "all"}
    assert config["fail_on_difference"] is True


def test_the_nightly_snapshots_take_what_ended_lately(tmp_path: Path) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        request = nightly_snapshots(_context(instance))
    assert isinstance(request, dg.RunRequest)
    assert dg.validate_run_config(snapshot_migrations, request.run_config)


def test_each_model_that_is_watched_is_checked_by_night(data_dir: Path) -> None:
    with dg.DagsterInstance.local_temp(str(data_dir)) as instance:
        requests = nightly_processes(_context(instance))
    assert isinstance(requests, list)
    assert [request.run_key for request in requests] == ["2024-05-01-migration"]
    assert dg.validate_run_config(check_processes, requests[0].run_config)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
def test_a_schedule_waits_for_its_last_run(data_dir: Path, schedule: dg.ScheduleDefinition) -> None:
    with dg.DagsterInstance.local_temp(str(data_dir)) as instance:
        tags = {"dagster/schedule_name": schedule.name}
        instance.create_run_for_job(replay, tags=tags, status=dg.DagsterRunStatus.STARTED)
        assert isinstance(schedule(_context(instance)), dg.SkipReason)
