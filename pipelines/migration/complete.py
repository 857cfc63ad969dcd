"""Complete: the run's final statistics, when the last verification found the target right."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from eventsourcing.wording import counted
from pipelines.migration.context import RunContext
from pipelines.migration.errors import MigrationError, VerificationError
from pipelines.migration.manifest import StageOutcome
from pipelines.migration.worktables import OUTCOMES


def complete(run: RunContext) -> StageOutcome:
    """End the run with its accounting. Raises VerificationError when the target is not right."""
    verified = run.manifest.outcomes["verify"].facts
    if not verified["ok"]:
        count = sum(
            item[kind] for item in verified["tables"].values() for kind in ("changed", "missing", "extra")
        )
        raise VerificationError(
            f"the target differs from what was migrated in {counted(count, 'row')}", stage="verify"
        )
    entities = {name: _totals(run, name) for name in run.plan.entities}
    keys = ("in", *OUTCOMES, "quarantined", "filtered")
    statistics: dict[str, Any] = {
        "entities": entities,
        "total": {key: sum(item[key] for item in entities.values()) for key in keys},
        "children": run.manifest.outcomes["load"].facts["import_stats"]["children"],
        "verification": {
            "ok": verified["ok"],
            "tables": {name: _counted(table) for name, table in verified["tables"].items()},
            "orphans": verified["orphans"],
        },
    }
    seconds = (datetime.now(UTC) - run.row.started_at).total_seconds()
    return run.finish("complete", {"statistics": statistics, "duration_seconds": round(seconds, 3)})


def _counted(table: dict[str, Any]) -> dict[str, int]:
    return {name: count for name, count in table.items() if name != "unequal"}


def _totals(run: RunContext, entity: str) -> dict[str, int]:
    """Rows in = inserted + updated + unchanged + skipped + quarantined + filtered (guarantee G9).

    What an attempt took in is what the one before had left in quarantine, so only the last one's counts.
    """
    stages = ("extract", "transform", "validate", "load")
    counts = [{stage: attempt.counts(stage)[entity] for stage in stages} for attempt in run.attempts]
    loaded = [count["load"] for count in counts]
    totals = {
        "in": counts[0]["extract"]["in"],
        **{outcome: sum(load.get(outcome, 0) for load in loaded) for outcome in OUTCOMES},
        "quarantined": sum(count["quarantined"] for count in counts[-1].values()),
        "filtered": sum(count["filtered"] for attempt in counts for count in attempt.values()),
    }
    if 2 * totals["in"] != sum(totals.values()):
        raise MigrationError(f"the accounting of {entity} does not add up: {totals}", stage="complete")
    return totals
