"""Everything that Dagster loads of us: `defs`."""

from __future__ import annotations

import dagster as dg

from pipelines.jobs import JOBS, RESOURCES
from pipelines.schedules import nightly_replay
from pipelines.sensors import completed_migrations

_REPLAYED = ("all", "aggregate", "type", "correlation")

defs = dg.Definitions(
    jobs=JOBS,
    schedules=[nightly_replay],
    sensors=[completed_migrations],
    assets=[
        dg.AssetSpec(["replay", kind], description=f"Replays of {kind}: counts and rate, run by run.")
        for kind in _REPLAYED
    ],
    resources=RESOURCES,
)
