"""Extract: every row of the source, from one consistent snapshot, into checksummed chunk files.

Extraction is one unit: a crash before its outcome is durable begins it again from a new snapshot; after
that the source is not read again.
"""

from __future__ import annotations

import time
from typing import Any

from eventsourcing.wording import counted
from pipelines.migration.ahead import ahead
from pipelines.migration.attempts import taken_in
from pipelines.migration.chunks import remove_stage
from pipelines.migration.context import RunContext, check_accounting
from pipelines.migration.errors import SourceError
from pipelines.migration.keys import key_text, listed
from pipelines.migration.manifest import StageOutcome
from pipelines.migration.plan import EntityPlan
from pipelines.migration.source import Snapshot, Source


def extract(run: RunContext, source: Source) -> StageOutcome:
    """Stage all rows of all entities. Raises SourceError, never stages fewer rows than there are."""
    began = time.monotonic()
    remove_stage(run.folder, "extract")
    run.begin_stage("extract")
    with source.snapshot() as snapshot:
        counts = {name: _extract_entity(run, entity, snapshot) for name, entity in run.plan.entities.items()}
    check_accounting("extract", counts)
    total = sum(count["out"] for count in counts.values())
    took = max(time.monotonic() - began, 1e-6)
    facts: dict[str, Any] = {
        "source_type": source.describe()["kind"],
        "record_count": total,
        "extraction_stats": {
            "entities": counts,
            "chunks": {name: len(run.staged("extract", name)) for name in counts},
            "rows_per_second": round(total / took),
        },
    }
    return run.finish("extract", facts)


def _extract_entity(run: RunContext, entity: EntityPlan, snapshot: Snapshot) -> dict[str, int]:
    total, done, wanted = snapshot.count(entity.source.name), 0, taken_in(run, entity.name)
    run.manifest.staged["extract"][entity.name] = []
    kept = 0
    frames = snapshot.chunks(
        entity.source, key=entity.mapping.key, columns=entity.columns, rows=run.plan.mapping.chunk.rows
    )
    for number, frame in enumerate(ahead(frames), start=run.first_chunk):
        if any(frame[name].null_count() for name in entity.mapping.key):
            reason = f"rows of {entity.source.name!r} have a key that is not of its column's type"
            raise SourceError(reason, stage="extract")
        done += frame.height
        if wanted is not None:
            frame = frame.filter(key_text(entity.source_key).is_in(wanted.implode()))
        if wanted is None or frame.height:
            run.write("extract", entity.name, number, frame)
        kept += frame.height
        run.progress("extract", entity.name, done, total)
    if done != total:
        key = listed(entity.mapping.key)
        rows = counted(total - done, "row")
        reason = f"{rows} of {entity.source.name!r} without a key {key!r}, or with one that another has"
        raise SourceError(reason, stage="extract")
    taken = total if wanted is None else wanted.len()
    return {"in": taken, "out": kept, "quarantined": taken - kept, "filtered": 0}
