"""What callers of the migration routes send: names of what is configured, and options; never an address."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StringConstraints

from api.schemas import Body, PageParams, examples

Name = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")]
MigrationId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]

RESERVED = frozenset({"stats"})
"""Ids that no migration may have: they are paths."""


class MigrationOptions(Body):
    """How a migration goes about it."""

    on_failure: Literal["keep", "rollback"] = "keep"
    """A failed stage leaves everything to be resumed, or is undone in the same run."""


class MigrationBody(Body):
    """A migration to start: a mapping file, a source and a target, each by its configured name."""

    model_config = examples({"mapping": "legacy-panel", "source": "legacy-panel.db", "target": "target"})

    mapping: Name
    source: Name
    target: Name = "target"
    migration_id: MigrationId | None = None
    options: MigrationOptions = MigrationOptions()
    dry_run: StrictBool = False
    """Say what it would do, and write nothing."""


class RollbackBody(Body):
    """How to undo a migration."""

    model_config = examples({"reason": "a rehearsal"})

    reason: Annotated[str, StringConstraints(min_length=1, max_length=500)] = "asked for"
    to_stage: Literal["start", "schema", "extract", "transform", "validate"] | None = None
    force: StrictBool = False
    """Undo what others changed since, too."""
    dry_run: StrictBool = False
    """Say what would be undone, and undo nothing."""


class RetryBody(Body):
    """Which mapping the quarantined records run under; the same name unless given."""

    model_config = examples({"mapping": "legacy-panel-mended"})

    mapping: Name | None = None


class MigrationPage(PageParams):
    """A page of migrations."""


class QuarantinePageParams(PageParams):
    """A page of a quarantine."""

    limit: Annotated[int, Field(ge=1, le=500)] = 100
