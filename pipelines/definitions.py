"""Everything that Dagster loads of us: `defs`."""

from __future__ import annotations

import warnings

import dagster as dg

from pipelines.jobs import JOBS, RESOURCES, STAGES
from pipelines.schedules import nightly_replay
from pipelines.sensors import completed_migrations, crashed_migrations, parked_aggregates

_REPLAYED = ("all", "aggregate", "type", "correlation")
_PLOTS = [
    *(dg.AssetSpec(["migration", stage.name], description=stage.description) for stage in STAGES),
    *(dg.AssetSpec(["replay", kind], description=f"Replays of {kind}.") for kind in _REPLAYED),
    dg.AssetSpec(["backfill"], description="Backfills of past events."),
]
"""What is observed rather than made: the numbers of each stage, replay and backfill, run by run."""

# Dagster says of every run that its handler settings are beta; it is pinned to one minor.
warnings.filterwarnings("ignore", "Handling yaml-defined logging", dg.BetaWarning)

defs = dg.Definitions(
    jobs=JOBS,
    schedules=[nightly_replay],
    sensors=[completed_migrations, crashed_migrations, parked_aggregates],
    assets=_PLOTS,
    resources=RESOURCES,
)
