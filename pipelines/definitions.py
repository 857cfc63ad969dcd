"""Everything that Dagster loads of us: `defs`."""

from __future__ import annotations

import warnings

import dagster as dg

from eventsourcing.readmodels import READ_MODELS
from pipelines.crashes import crashed_migrations, crashed_replays
from pipelines.jobs import JOBS, RESOURCES, STAGES
from pipelines.processes import broken_processes, overdue_processes
from pipelines.schedules import SCHEDULES
from pipelines.sensors import completed_migrations, failed_migrations, parked_aggregates

_REPLAYED = ("all", "aggregate", "type", "correlation")
_PLOTS = [
    *(dg.AssetSpec(["migration", stage.name], description=stage.description) for stage in STAGES),
    *(dg.AssetSpec(["replay", kind], description=f"Replays of {kind}.") for kind in _REPLAYED),
    *(
        dg.AssetSpec(["rebuild", model.name], description="Rebuilds of a read model.")
        for model in READ_MODELS
    ),
    dg.AssetSpec(["backfill"], description="Backfills of past events."),
]
"""What is observed rather than made: the numbers of each stage, replay, rebuild and backfill, run by run."""

# Dagster says of every run that its handler settings are beta; it is pinned to one minor.
warnings.filterwarnings("ignore", "Handling yaml-defined logging", dg.BetaWarning)

defs = dg.Definitions(
    jobs=JOBS,
    schedules=SCHEDULES,
    sensors=[
        completed_migrations,
        failed_migrations,
        broken_processes,
        overdue_processes,
        parked_aggregates,
        crashed_migrations,
        crashed_replays,
    ],
    assets=_PLOTS,
    resources=RESOURCES,
)
