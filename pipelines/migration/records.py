"""The events of records: migrated, quarantined, rolled back, each in the record's own stream."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import polars as pl

from eventsourcing.catalogue import RecordQuarantinedEvent
from eventsourcing.events import BaseEvent, TypedEvent, event_class
from pipelines.migration.context import RunContext
from pipelines.migration.plan import EntityPlan

_MAX_KEY = 200


def stream_of(kind: str, key: Any) -> str:
    """`user-17`; a key that no id may hold, too long or with control characters, is hashed."""
    text = str(key)
    if len(text) > _MAX_KEY or not text.isprintable():
        text = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{kind}-{text}"


def quarantined_events(
    run: RunContext, entity: EntityPlan, violations: pl.DataFrame, at: datetime
) -> Iterator[BaseEvent]:
    """One event for each quarantined record: its first violation, and the others under `also`."""
    cause, attempt = run.announcer.stage_id("transform"), run.announcer.attempt_of("validate")
    for (key,), found in violations.group_by("_key", maintain_order=True):
        first, *others = found.drop("_key").to_dicts()
        stream = stream_of(f"record-{entity.name}", key)
        data = {"entity": entity.name, "source_key": str(key), **first, "also": others, "quarantined_at": at}
        data["migration_id"] = run.migration_id
        yield RecordQuarantinedEvent(
            aggregate_id=stream,
            data=data,
            **run.announcer.envelope("record.quarantined", *attempt, stream, cause=cause, at=at),
        )


def rolled_back_class(entity: EntityPlan) -> type[TypedEvent] | None:
    """`user.rolled_back` for what emitted `user.migrated`, when such an event is registered."""
    cls = entity.mapping.event
    return event_class(f"{cls.declared_aggregate}.rolled_back") if cls is not None else None
