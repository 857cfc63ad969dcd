"""The jobs. Each runs in one process: a process a step would cost a second a step.

Ops pass nothing to each other, only the order: so nothing is pickled, and a run can be repeated from any
op in another process.
"""

from typing import Any

import dagster as dg

from pipelines.config import MigrateConfig
from pipelines.ops import afterwards, dead_letters, processes, read_models
from pipelines.ops import backfill as backfills
from pipelines.ops import migration as stages
from pipelines.ops import replay as replays
from resources.databases import DatabasesResource
from resources.eventing import EventingResource
from resources.workspace import WorkspaceResource

RESOURCES = {
    "eventing": EventingResource(),
    "databases": DatabasesResource(),
    "workspace": WorkspaceResource(),
}

_IN_PROCESS: dict[str, Any] = {"executor_def": dg.in_process_executor, "resource_defs": RESOURCES}

STAGES = (
    stages.start,
    stages.check_schema,
    stages.extract,
    stages.transform,
    stages.validate,
    stages.load,
    stages.verify,
    stages.complete,
)


@dg.config_mapping
def _same_for_every_stage(config: MigrateConfig) -> dg.RunConfig:
    return dg.RunConfig(ops={stage.name: config for stage in (*STAGES, stages.compensate)})


@dg.job(config=_same_for_every_stage, **_IN_PROCESS, tags={"owner": "migration"})
def migrate() -> None:
    """Move users and admins from a source into the target, every step an event."""
    first, *rest = STAGES
    done, failed = first()
    failures = [failed]
    for stage in rest:
        done, failed = stage(after=done)
        failures.append(failed)
    stages.compensate(failures=failures)


@dg.job(**_IN_PROCESS, tags={"owner": "migration"})
def rollback() -> None:
    """Undo a migration row by row; rows that others changed since stay as they are and are reported."""
    afterwards.roll_back()


@dg.job(**_IN_PROCESS, tags={"owner": "migration"})
def plan_migration() -> None:
    """Say what a migration would do, record by record, and write nothing."""
    afterwards.preview()


@dg.job(**_IN_PROCESS, tags={"owner": "migration"})
def verify_migration() -> None:
    """Compare the target with what was migrated, with the events and with the source's own derivation."""
    afterwards.verify_target()


@dg.job(**_IN_PROCESS, tags={"owner": "migration"})
def retry_quarantine() -> None:
    """Run what a migration left in quarantine again, after its mapping was mended."""
    afterwards.retry_records()


@dg.job(**_IN_PROCESS, tags={"owner": "replay"})
def replay() -> None:
    """Replay stored events into a shadow: no live view and nothing outside is touched."""
    replays.replay_events()


@dg.job(**_IN_PROCESS, tags={"owner": "replay"})
def snapshot() -> None:
    """Store the state of one aggregate."""
    replays.create_snapshot()


@dg.job(**_IN_PROCESS, tags={"owner": "replay"})
def validate_sequence() -> None:
    """Check that an aggregate has exactly the events that it should have."""
    replays.check_sequence.alias("validate_sequence")()  # one name cannot be an op's and a job's


@dg.job(**_IN_PROCESS, tags={"owner": "replay"})
def snapshot_migrations() -> None:
    """Store the states of the migrations that ended lately."""
    replays.create_snapshots()


@dg.job(**_IN_PROCESS, tags={"owner": "replay"})
def verify_snapshots() -> None:
    """Check that stored snapshots are what their events come to."""
    read_models.hold_snapshots()


@dg.job(**_IN_PROCESS, tags={"owner": "replay"})
def rebuild() -> None:
    """Fold a read model anew beside the live one, and say how they differ."""
    read_models.rebuild_read_model()


@dg.job(**_IN_PROCESS, tags={"owner": "replay"})
def check_processes() -> None:
    """Check that streams keep to a process model; the first event that broke it fails the run."""
    processes.keep_to_process()


@dg.job(**_IN_PROCESS, tags={"owner": "operations"})
def redrive() -> None:
    """Give the events of parked aggregates to their handlers again; or show what that would take."""
    dead_letters.redrive_dead_letters()


@dg.job(**_IN_PROCESS, tags={"owner": "operations"})
def backfill() -> None:
    """Append past events of a file at the dates when they happened; a wrong row stops all, before any."""
    backfills.backfill_events()


JOBS = [
    migrate,
    plan_migration,
    verify_migration,
    retry_quarantine,
    rollback,
    replay,
    snapshot,
    snapshot_migrations,
    verify_snapshots,
    rebuild,
    validate_sequence,
    check_processes,
    redrive,
    backfill,
]
