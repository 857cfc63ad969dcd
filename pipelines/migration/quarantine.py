"""Quarantine: the events of records that were set aside, and of those that a later attempt let go on.

A record's quarantine is told in the stream `record-{entity}-{source key}`: each attempt that sets it
aside adds one event, and its release is the last. No event holds a value of the record.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import polars as pl

from eventsourcing.catalogue import RecordQuarantinedEvent, RecordReleasedEvent
from eventsourcing.events import BaseEvent, EventType
from pipelines.migration.attempts import left_in_quarantine, taken_in
from pipelines.migration.context import RunContext
from pipelines.migration.plan import EntityPlan
from pipelines.migration.records import stream_of
from pipelines.migration.refusals import kept_refusals


def quarantined_events(
    run: RunContext, entity: EntityPlan, violations: pl.DataFrame, at: datetime
) -> Iterator[BaseEvent]:
    """One event for each quarantined record: its first violation, and the others under `also`."""
    for (key,), found in violations.group_by("_key", maintain_order=True):
        first, *others = found.drop("_key").to_dicts()
        yield _quarantined(run, entity, str(key), {**first, "also": others}, "transform", at)


def refused_events(run: RunContext, entity: EntityPlan, at: datetime) -> Iterator[BaseEvent]:
    """One event for each record that the target itself refused in this attempt."""
    with run.target.transaction() as transaction:
        refused = kept_refusals(transaction.connection, run.migration_id, entity.name)
    for item in refused:
        if item.chunk >= run.first_chunk:
            fields = {"rule": item.rule, "column": item.column, "message": item.message}
            yield _quarantined(
                run, entity, item.source_key, {"stage": "load", **fields, "also": []}, "validate", at
            )


def released_events(run: RunContext, entity: EntityPlan, at: datetime) -> Iterator[BaseEvent]:
    """One event for each record that this attempt took out of quarantine; none in the first attempt."""
    taken = taken_in(run, entity.name)
    if taken is None:
        return
    left = left_in_quarantine(run.manifest, run.target, run.migration_id, run.attempt, entity.name)
    migrated = {key for chunk in run.staged("valid", entity.name) for key in run.read(chunk)["_key"]}
    for key in taken:
        if key in left:
            continue
        stream = stream_of(f"record-{entity.name}", key)
        data = {
            "migration_id": run.migration_id,
            "entity": entity.name,
            "source_key": key,
            "attempt": run.attempt,
            "outcome": "migrated" if key in migrated else "filtered",
            "released_at": at,
        }
        parts = (EventType.RECORD_RELEASED, stream, str(run.attempt))
        cause = run.announcer.stage_id("validate")
        yield RecordReleasedEvent(
            aggregate_id=stream, data=data, **run.announcer.envelope(*parts, cause=cause, at=at)
        )


def _quarantined(
    run: RunContext, entity: EntityPlan, key: str, fields: dict[str, Any], cause: str, at: datetime
) -> BaseEvent:
    stream = stream_of(f"record-{entity.name}", key)
    data = {
        "migration_id": run.migration_id,
        "entity": entity.name,
        "source_key": key,
        "attempt": run.attempt,
        **fields,
        "quarantined_at": at,
    }
    told = (*run.announcer.attempt_of("validate"), *run.announcer.retry_parts())
    parts = (EventType.RECORD_QUARANTINED, *told, stream)
    envelope = run.announcer.envelope(*parts, cause=run.announcer.stage_id(cause), at=at)
    return RecordQuarantinedEvent(aggregate_id=stream, data=data, **envelope)
