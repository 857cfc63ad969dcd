"""What happens by the clock. What still runs from the last time is not asked for again."""

from __future__ import annotations

import dagster as dg

from eventsourcing.config import Settings
from eventsourcing.plugins import load_plugins
from eventsourcing.process_models import process_models
from pipelines.config import ProcessesConfig, ReplayConfig, SnapshotsConfig
from pipelines.jobs import check_processes, replay, snapshot_migrations

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]

_RUNNING = dg.DefaultScheduleStatus.RUNNING


@dg.schedule(job=replay, cron_schedule="0 2 * * *", execution_timezone="UTC", default_status=_RUNNING)
def nightly_replay(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Replay every event into a shadow each night; the run fails when the live views say otherwise."""
    if _still_runs(context, "nightly_replay"):
        return dg.SkipReason("the last nightly replay still runs")
    config = dg.RunConfig(ops={"replay_events": ReplayConfig(fail_on_difference=True)})
    return dg.RunRequest(run_key=_night(context), run_config=config, tags={"source": "schedule"})


@dg.schedule(
    job=snapshot_migrations, cron_schedule="30 1 * * *", execution_timezone="UTC", default_status=_RUNNING
)
def nightly_snapshots(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Store the states of the migrations that ended in the last days."""
    if _still_runs(context, "nightly_snapshots"):
        return dg.SkipReason("the last nightly snapshots are still being made")
    config = dg.RunConfig(ops={"create_snapshots": SnapshotsConfig()})
    return dg.RunRequest(run_key=_night(context), run_config=config, tags={"source": "schedule"})


@dg.schedule(
    job=check_processes, cron_schedule="0 3 * * *", execution_timezone="UTC", default_status=_RUNNING
)
def nightly_processes(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
    """Check every process model that is watched live, for what is overdue raises no event."""
    if _still_runs(context, "nightly_processes"):
        return dg.SkipReason("the last nightly check still runs")
    load_plugins(Settings.load())
    return [
        dg.RunRequest(
            run_key=f"{_night(context)}-{model.name}",
            run_config=dg.RunConfig(ops={"keep_to_process": ProcessesConfig(model=model.name)}),
            tags={"source": "schedule", "process_model": model.name},
        )
        for model in process_models()
        if model.live
    ]


SCHEDULES = [nightly_snapshots, nightly_replay, nightly_processes]


def _still_runs(context: dg.ScheduleEvaluationContext, name: str) -> bool:
    mine = dg.RunsFilter(tags={"dagster/schedule_name": name}, statuses=UNFINISHED)
    return bool(context.instance.get_runs_count(mine))


def _night(context: dg.ScheduleEvaluationContext) -> str:
    return context.scheduled_execution_time.date().isoformat()
