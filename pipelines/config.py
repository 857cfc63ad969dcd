"""The run configurations of the jobs: what a caller may ask for, and no address of anything."""

from __future__ import annotations

from typing import Any, Literal

import dagster as dg
from pydantic import Field

from resources.connections import TARGET

OnFailure = Literal["keep", "rollback"]
"""What a failed stage leads to: everything stays and can be resumed, or is undone in the run."""


class MigrateConfig(dg.Config):
    """One migration. Running it again under the same migration_id goes on where it stopped."""

    mapping: str = Field(description="Name of a mapping file.")
    source: str = Field(description="Name of a source, or of a file in the source directory.")
    target: str = Field(default=TARGET, description="Name of the target.")
    migration_id: str | None = Field(default=None, description="Made from the run's id unless given.")
    on_failure: OnFailure = Field(default="keep", description="keep, or rollback in the same run.")


class VerifyConfig(dg.Config):
    """Compare a target with what a migration migrated, at any time."""

    migration_id: str


class RetryConfig(dg.Config):
    """Run what a migration left in quarantine again."""

    migration_id: str
    mapping: str | None = Field(default=None, description="The mended mapping; the same name unless given.")


class RollbackConfig(dg.Config):
    """Undo a migration that a run of `migrate` began."""

    migration_id: str
    reason: str = "asked for"
    to_stage: str | None = Field(default=None, description="Go back to after this stage only.")
    force: bool = Field(default=False, description="Undo what others changed since, too.")
    dry_run: bool = Field(default=False, description="Say what would be undone, and undo nothing.")


class ReplayConfig(dg.Config):
    """A replay: the row that asks for it, or the request for a new row."""

    replay_id: str | None = Field(default=None, description="A pending replay; a new one unless given.")
    request: dict[str, Any] = Field(
        default={"replay_type": "all"}, description="What a new replay replays, as POST /replay takes it."
    )
    fail_on_difference: bool = Field(
        default=False, description="Fail the run when the live views say something else than the replay."
    )


class SnapshotConfig(dg.Config):
    """A snapshot of one aggregate; without a version, of its last one."""

    aggregate_id: str
    up_to_version: int | None = None
    result_id: str | None = Field(default=None, description="Key of the result; the run's id unless given.")


class SequenceConfig(dg.Config):
    """The event types that an aggregate should have, in order; or the process model it should keep to."""

    aggregate_id: str
    expected_sequence: list[str] | None = None
    model: str | None = Field(default=None, description="A process model, in place of the sequence.")
    result_id: str | None = Field(default=None, description="Key of the result; the run's id unless given.")


class RebuildConfig(dg.Config):
    """A read model to fold anew beside the live one."""

    name: str = Field(description="Name of a read model.")
    fresh: bool = Field(default=False, description="Start over what was begun before.")
    switch: bool = Field(default=False, description="Make it the live one when it is ready.")


class VerifySnapshotsConfig(dg.Config):
    """Snapshots to hold against their events."""

    aggregate_id: str | None = Field(default=None, description="Only of this aggregate.")


class SnapshotsConfig(dg.Config):
    """Snapshots of the migrations that ended lately and went on since their last snapshot."""

    days: int = Field(default=2, ge=1, description="How far back to look for what ended.")


class ProcessesConfig(dg.Config):
    """A process model, and whether all of its subjects kept to it."""

    model: str = Field(default="migration", description="Name of a process model.")
    aggregate_id: str | None = Field(default=None, description="Only this aggregate.")


class RedriveConfig(dg.Config):
    """A re-drive of dead letters; a dry run shows what it would take, and does nothing."""

    group: str = Field(description="The consumer group.")
    aggregate_id: str | None = Field(default=None, description="Only this parked aggregate.")
    aggregates: list[str] = Field(default_factory=list, description="Only these parked aggregates.")
    event_type: str | None = Field(default=None, description="Only failures on this event type.")
    fingerprint: str | None = Field(default=None, description="Only failures of this cause.")
    cap: int | None = Field(default=None, description="At most so many events.")
    dry_run: bool = Field(default=True, description="Only show what would be re-driven.")
    by: str = Field(default="dagster", description="Who does it; it stands in the audit.")
    why: str = Field(default="", description="The reason; it stands in the audit, and must be given.")


class BackfillConfig(dg.Config):
    """A backfill of past events. Running it again under the same name appends what is missing."""

    file: str = Field(description="A file in the source directory: NDJSON, CSV or Parquet, by its ending.")
    name: str | None = Field(default=None, description="What makes a second run the same; else the file's.")
    timezone: str | None = Field(default=None, description="Of dates that name none; else they are refused.")
    merge: bool = Field(default=False, description="Append behind later events of an aggregate.")
