"""Preview: what a run would do, found out by doing all of it but the writing.

The source is read whole, transformed and judged in a folder that is gone afterwards; the target is only
read; no event is appended and no work table made. So the counts are those of a run begun now, record by
record, and the samples are its records, their secrets masked.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import polars as pl

from pipelines.migration.announce import Announcer
from pipelines.migration.chunks import make_private
from pipelines.migration.context import RunContext
from pipelines.migration.errors import MigrationError
from pipelines.migration.extract import extract
from pipelines.migration.load import refuse_filled_tables, tables_written
from pipelines.migration.manifest import Manifest, StageOutcome
from pipelines.migration.plan import EntityPlan
from pipelines.migration.schemacheck import check_schema
from pipelines.migration.source import Source
from pipelines.migration.transform import transform
from pipelines.migration.validate import refuse_excess, validate
from pipelines.migration.worktables import OUTCOMES, RunRow, refuse_other_holder
from pipelines.migration.writing import foresee

SAMPLES = 3
"""How many records of each entity are shown."""


@dataclass
class PreviewRun(RunContext):
    """A run that writes nothing but its own folder."""

    def finish(self, stage: str, facts: dict[str, Any], *, at: datetime | None = None) -> StageOutcome:
        """Keep the outcome in memory; the target is not told."""
        outcome = StageOutcome(stage, at or datetime.now(UTC), facts)
        self.manifest.outcomes[stage] = outcome
        return outcome

    def progress(self, stage: str, entity: str, done: int, total: int) -> None:
        """Report progress; a preview holds no target whose lease it could renew."""
        self.refuse_when_stopped()
        self.reporter.report(stage, entity, done, total)


def preview(run: PreviewRun, source: Source) -> dict[str, Any]:
    """What a run would do: counts, quarantine by rule, samples, blockers and warnings.

    `ok` is true when nothing stands in its way. Raises SourceError and TargetError.
    """
    checked = check_schema(run).facts["compatibility_result"]
    facts: dict[str, Any] = {
        "mapping_sha256": run.row.mapping_sha256,
        "source": source.describe(),
        "target": run.target.describe(),
        "on_conflict": run.plan.mapping.on_conflict,
        "blockers": [*checked["blockers"]],
        "warnings": checked["warnings"],
        "entities": {},
        "quarantine": [],
        "samples": {},
    }
    facts["blockers"] += _target_blockers(run)
    if checked["compatible"]:
        extract(run, source)
        transform(run)
        judged = validate(run)
        facts["blockers"] += _said_by(refuse_excess, run, judged)
        facts["entities"] = {name: _counts(run, entity) for name, entity in run.plan.entities.items()}
        facts["quarantine"] = judged.facts["validation_errors"]
        facts["samples"] = {name: _samples(run, entity) for name, entity in run.plan.entities.items()}
    return {"ok": not facts["blockers"], **facts}


def preview_run(folder: Path, run: dict[str, Any], *, mapping_sha256: str) -> PreviewRun:
    """The context of a preview; its files go below `folder`, which is the caller's to remove."""
    manifest = Manifest(folder, run.pop("source_tables"), run.pop("target_tables"))
    row = RunRow(
        "preview", mapping_sha256, "running", "start", run.pop("now"), UUID(int=0), {}, run.pop("first_keys")
    )
    log = run.pop("store")
    return PreviewRun(row=row, manifest=manifest, announcer=Announcer(log, row, {}), **run)


def preview_folder(below: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder that only its owner may enter and that is gone when it is closed."""
    make_private(below)
    return tempfile.TemporaryDirectory(prefix="preview-", dir=below)


def _target_blockers(run: PreviewRun) -> list[str]:
    with run.target.transaction() as transaction:
        found = _said_by(refuse_other_holder, transaction.connection, run.migration_id)
        found += _said_by(refuse_filled_tables, transaction, run.plan)
        lacking = transaction.lacking(tables_written(run.plan))
    return found + [f"the target's user has no {right} right on the {what}" for right, what in lacking]


def _said_by(check: Any, *given: Any) -> list[str]:
    """What a check has against it: its error's message, or nothing."""
    try:
        check(*given)
    except MigrationError as error:
        return [str(error)]
    return []


def _counts(run: PreviewRun, entity: EntityPlan) -> dict[str, int]:
    counts = {
        stage: run.manifest.counts(stage)[entity.name] for stage in ("extract", "transform", "validate")
    }
    settled: Counter[str] = Counter()
    for place, chunk in enumerate(run.staged("valid", entity.name)):
        frame = run.read(chunk)
        if not frame["_existing"].any():
            settled["inserted"] += frame.height
            continue
        families = {
            name: run.read(run.staged("valid", f"{entity.name}.{name}")[place]) for name in entity.children
        }
        with run.target.transaction() as transaction:
            settled.update(foresee(transaction, entity, frame, families).to_list())
    return {
        "in": counts["extract"]["in"],
        **{outcome: settled[outcome] for outcome in OUTCOMES},
        "quarantined": sum(count["quarantined"] for count in counts.values()),
        "filtered": sum(count["filtered"] for count in counts.values()),
    }


def _samples(run: PreviewRun, entity: EntityPlan) -> list[dict[str, Any]]:
    """The first records as they would arrive, their secrets masked."""
    chunks = [chunk for chunk in run.staged("valid", entity.name) if chunk.rows]
    if not chunks:
        return []
    frame = run.read(chunks[0]).head(SAMPLES)
    secret = frozenset(name for name, field in entity.fields.items() if field.secret)
    targets = _masked(run, frame, secret)
    place = run.staged("valid", entity.name).index(chunks[0])
    families = {
        name: run.read(run.staged("valid", f"{entity.name}.{name}")[place]) for name in entity.children
    }
    keyed = zip(frame["_key"], frame["_record"], targets, strict=True)
    return [
        {
            "source_key": key,
            **target,
            **(dict.fromkeys(entity.target.key, record) if len(entity.target.key) == 1 else {}),
            **{name: made.filter(pl.col("_record") == record).height for name, made in families.items()},
        }
        for key, record, target in keyed
    ]


def _masked(run: PreviewRun, frame: pl.DataFrame, secret: frozenset[str]) -> list[dict[str, Any]]:
    """The target's values of records, the secret ones masked."""
    picked = frame.select(pl.col(name).alias(name[2:]) for name in frame.columns if name.startswith("t:"))
    masked = [run.masker.mask_all(picked[name]) for name in picked.columns if name in secret]
    return picked.with_columns(masked).to_dicts()
