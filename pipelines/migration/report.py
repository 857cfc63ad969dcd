"""Report: what a run came to, as one document: counts, quarantine, verification, times. No value of a record.

The same facts make the JSON and the page. Keys of records stand in it, as they do in events; whatever
else a record holds does not.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from eventsourcing.canonical import decode, encode
from pipelines.migration.chunks import make_private, write_private
from pipelines.migration.context import RunContext
from pipelines.migration.manifest import Manifest
from pipelines.migration.plan import EntityPlan
from pipelines.migration.refusals import Refusal, kept_refusals
from pipelines.migration.report_page import page
from pipelines.migration.worktables import OUTCOMES

STAGES = ("start", "schema", "extract", "transform", "validate", "load", "verify", "complete")
"""The stages of a run in order, as the report shows them."""

COUNTS = ("in", *OUTCOMES, "quarantined", "filtered")
_SAMPLES = 20


def report_facts(run: RunContext) -> dict[str, Any]:
    """The report of a run as far as it came, in plain JSON values."""
    first, last = run.attempts[0], run.manifest
    started = run.row.started_at
    ended = last.outcomes.get("complete")
    undone = last.outcomes.get("undone")
    facts = {
        "migration_id": run.migration_id,
        "status": run.row.status,
        "correlation_id": run.row.correlation_id,
        "started_at": started,
        "completed_at": None if ended is None else ended.at,
        "mapping_sha256": run.row.mapping_sha256,
        "source": _facts(first, "start").get("source_config", {}),
        "target": _facts(first, "start").get("target_config", {}),
        "entities": {name: _counts(run, name) for name in run.plan.entities},
        "children": _facts(first, "load").get("import_stats", {}).get("children", {}),
        "stages": [
            stage for number, attempt in enumerate(run.attempts, 1) for stage in _times(attempt, number)
        ],
        "attempts": [_attempt(attempt, number) for number, attempt in enumerate(run.attempts, 1)],
        "quarantine": [*_facts(last, "validate").get("validation_errors", []), *_refused(run)],
        "warnings": _facts(last, "schema").get("compatibility_result", {}).get("warnings", []),
        "conversions": _facts(first, "transform").get("transformation_stats", {}).get("conversions", []),
        "verification": _facts(last, "verify") or None,
        "rolled_back": None if undone is None else undone.facts,
    }
    plain: dict[str, Any] = decode(encode(facts))
    return plain


def write_report(folder: Path, facts: dict[str, Any]) -> tuple[Path, Path]:
    """Write `report.json` and `report.html` into a run's folder, for their owner only."""
    make_private(folder)
    paths = folder / "report.json", folder / "report.html"
    write_private(paths[0], encode(facts))
    write_private(paths[1], page(facts).encode())
    return paths


def _facts(manifest: Manifest, stage: str) -> dict[str, Any]:
    outcome = manifest.outcomes.get(stage)
    return {} if outcome is None else outcome.facts


def _counts(run: RunContext, entity: str) -> dict[str, int]:
    """The accounting of an entity over all attempts, as far as the run came."""
    found = dict.fromkeys(COUNTS, 0)
    stages = ("extract", "transform", "validate", "load")
    for attempt in run.attempts:
        done = [attempt.counts(stage)[entity] for stage in stages if stage in attempt.outcomes]
        if not done:
            continue
        found["in"] = found["in"] or done[0]["in"]
        found["quarantined"] = sum(count["quarantined"] for count in done)
        found["filtered"] += sum(count["filtered"] for count in done)
        for outcome in OUTCOMES:
            found[outcome] += sum(count.get(outcome, 0) for count in done)
    return found


def _times(manifest: Manifest, number: int) -> list[dict[str, Any]]:
    """When each stage ended and how long it took, in seconds."""
    done = [(stage, manifest.outcomes[stage]) for stage in STAGES if stage in manifest.outcomes]
    times, before = [], done[0][1].at if done else None
    for stage, outcome in done:
        assert before is not None
        seconds = max((outcome.at - before).total_seconds(), 0.0)
        times.append(
            {"stage": stage, "attempt": number, "ended_at": outcome.at, "seconds": round(seconds, 3)}
        )
        before = outcome.at
    return times


def _attempt(manifest: Manifest, number: int) -> dict[str, Any]:
    taken = Counter[str]()
    for stage in ("extract", "transform", "validate", "load"):
        if stage in manifest.outcomes:
            counts = manifest.counts(stage).values()
            if stage == "extract":
                taken["in"] = sum(count["in"] for count in counts)
            taken["quarantined"] += sum(count["quarantined"] for count in counts)
    sha = _facts(manifest, "start").get("mapping_sha256", "")
    return {"number": number, "mapping_sha256": sha, "in": taken["in"], "quarantined": taken["quarantined"]}


def _refused(run: RunContext) -> list[dict[str, Any]]:
    """What the target itself refused in the last attempt, by reason."""
    return [item for entity in run.plan.entities.values() for item in _refused_of(run, entity)]


def _refused_of(run: RunContext, entity: EntityPlan) -> list[dict[str, Any]]:
    with run.target.transaction() as transaction:
        kept = kept_refusals(transaction.connection, run.migration_id, entity.name)
    by_reason: dict[tuple[str, str, str], list[Refusal]] = {}
    for item in kept:
        if item.chunk >= run.first_chunk:
            by_reason.setdefault((item.rule, item.column, item.message), []).append(item)
    return [
        {
            "entity": entity.name,
            "stage": "load",
            "rule": rule,
            "column": column,
            "message": message,
            "count": len(items),
            "samples": [item.source_key for item in items[:_SAMPLES]],
        }
        for (rule, column, message), items in by_reason.items()
    ]
