"""The events of records: migrated and rolled back, each in the record's own stream."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

import polars as pl

from eventsourcing.events import BaseEvent, TypedEvent, event_class
from pipelines.migration.context import RunContext
from pipelines.migration.masking import Masker
from pipelines.migration.plan import EntityPlan

_MAX_KEY = 200


def stream_of(kind: str, key: Any) -> str:
    """`user-17`; a key that no id may hold, too long or with control characters, is hashed."""
    text = str(key)
    if len(text) > _MAX_KEY or not text.isprintable():
        text = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{kind}-{text}"


def migrated_events(
    run: RunContext, entity: EntityPlan, valid: pl.DataFrame, children: dict[str, pl.DataFrame], at: datetime
) -> Iterator[BaseEvent]:
    """One event for each record of a loaded chunk; nothing when the entity emits none."""
    cls = entity.mapping.event
    if cls is None:
        return
    sources = masked_rows(run, valid, "s:", entity.secret_sources)
    secret = frozenset(name for name, field in entity.fields.items() if field.secret)
    targets = masked_rows(run, valid, "t:", secret)
    grouped = {name: _by_record(run, entity, name, frame) for name, frame in children.items()}
    cause = run.announcer.stage_id("validate")
    for record, source, target in zip(valid["_record"], sources, targets, strict=True):
        target[entity.target_key] = record
        target |= {name: by_record.get(record, []) for name, by_record in grouped.items()}
        stream = stream_of(cls.declared_aggregate, record)
        yield cls(
            aggregate_id=stream,
            data={
                "username": str(target[entity.mapping.natural_key]),
                "source_data": source,
                "target_data": target,
                "migrated_at": at,
            },
            **run.announcer.envelope(cls.declared_type, stream, cause=cause, at=at),
        )


def masked_rows(
    run: RunContext, frame: pl.DataFrame, prefix: str, secret: frozenset[str]
) -> list[dict[str, Any]]:
    """The columns of a prefix as dicts without it, the secret ones masked."""
    picked = frame.select(pl.col(name).alias(name[2:]) for name in frame.columns if name.startswith(prefix))
    masked = [masked_values(run.masker, picked[name]) for name in picked.columns if name in secret]
    return picked.with_columns(masked).to_dicts()


def masked_values(masker: Masker, values: pl.Series) -> pl.Series:
    """The hashes that stand for secret values."""
    return pl.Series(values.name, [masker.mask(value) for value in values], dtype=pl.String)


def _by_record(run: RunContext, entity: EntityPlan, name: str, frame: pl.DataFrame) -> dict[Any, list[Any]]:
    rows = masked_rows(run, frame, "t:", entity.children[name].secret)
    grouped: dict[Any, list[Any]] = {}
    for record, row in zip(frame["_record"], rows, strict=True):
        grouped.setdefault(record, []).append(row)
    return grouped


def rolled_back_events(
    run: RunContext, entity: EntityPlan, rollback_id: str, records: list[str], *, cause: UUID, at: datetime
) -> Iterator[BaseEvent]:
    """One event for each record that was taken back; nothing for an entity without such an event."""
    cls = rolled_back_class(entity)
    if cls is None:
        return
    for record in records:
        stream = stream_of(cls.declared_aggregate, record)
        yield cls(
            aggregate_id=stream,
            data={
                "rollback_id": rollback_id,
                "migration_id": run.migration_id,
                "action": "deleted",
                "rolled_back_at": at,
            },
            **run.announcer.envelope(rollback_id, stream, cause=cause, at=at),
        )


def rolled_back_class(entity: EntityPlan) -> type[TypedEvent] | None:
    """`user.rolled_back` for what emitted `user.migrated`, when such an event is registered."""
    cls = entity.mapping.event
    return event_class(f"{cls.declared_aggregate}.rolled_back") if cls is not None else None
