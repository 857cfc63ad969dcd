"""Complete: the run's final statistics, when the last verification found the target right."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pipelines.migration.context import RunContext
from pipelines.migration.errors import MigrationError, VerificationError
from pipelines.migration.manifest import StageOutcome


def complete(run: RunContext) -> StageOutcome:
    """End the run with its accounting. Raises VerificationError when the target is not right."""
    verified = run.manifest.outcomes["verify"].facts
    if not verified["ok"]:
        count = sum(
            item[kind] for item in verified["tables"].values() for kind in ("changed", "missing", "extra")
        )
        raise VerificationError(f"the target differs from what was migrated in {count} rows", stage="verify")
    entities = {name: _totals(run, name) for name in run.plan.entities}
    keys = ("in", "inserted", "quarantined", "filtered")
    statistics: dict[str, Any] = {
        "entities": entities,
        "total": {key: sum(item[key] for item in entities.values()) for key in keys},
        "children": run.manifest.outcomes["load"].facts["import_stats"]["children"],
        "verification": {key: verified[key] for key in ("ok", "tables", "orphans")},
    }
    seconds = (datetime.now(UTC) - run.row.started_at).total_seconds()
    return run.finish("complete", {"statistics": statistics, "duration_seconds": round(seconds, 3)})


def _totals(run: RunContext, entity: str) -> dict[str, int]:
    """Rows in = inserted + updated + unchanged + skipped + quarantined + filtered (guarantee G9)."""
    stages = {
        stage: run.manifest.counts(stage)[entity] for stage in ("extract", "transform", "validate", "load")
    }
    totals = {
        "in": stages["extract"]["in"],
        **{k: stages["load"][k] for k in ("inserted", "updated", "unchanged", "skipped")},
        "quarantined": sum(count["quarantined"] for count in stages.values()),
        "filtered": sum(count["filtered"] for count in stages.values()),
    }
    if 2 * totals["in"] != sum(totals.values()):
        raise MigrationError(f"the accounting of {entity} does not add up: {totals}", stage="complete")
    return totals
