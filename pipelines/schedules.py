"""What happens by the clock."""

from __future__ import annotations

import dagster as dg

from pipelines.config import ReplayConfig
from pipelines.jobs import replay

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


@dg.schedule(
    job=replay,
    cron_schedule="0 2 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def nightly_replay(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Replay every event into a shadow each night, unless the last night's replay still runs."""
    running = dg.RunsFilter(
        job_name=replay.name, tags={"dagster/schedule_name": "nightly_replay"}, statuses=UNFINISHED
    )
    if context.instance.get_runs_count(running):
        return dg.SkipReason("the last nightly replay still runs")
    return dg.RunRequest(
        run_key=context.scheduled_execution_time.date().isoformat(),
        run_config=dg.RunConfig(ops={"replay_events": ReplayConfig()}),
        tags={"source": "schedule"},
    )
