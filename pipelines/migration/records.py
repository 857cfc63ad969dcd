"""Which stream and which events a record has."""

from __future__ import annotations

import hashlib
from typing import Any

import polars as pl

from eventsourcing.events import TypedEvent, event_class
from pipelines.migration.plan import EntityPlan

MAX_KEY = 200
"""How many characters of a key stand in a stream's name, at most."""
_UNPRINTABLE = r"[\p{C}\p{Z}--\x20]"
"""What `str.isprintable` refuses, or a little more: such keys are looked at one by one."""


def is_unfit(keys: pl.Expr, room: int = MAX_KEY) -> pl.Expr:
    """Whether a text may be one that no stream's name can hold."""
    return keys.str.len_chars().gt(room) | keys.str.contains(_UNPRINTABLE)


def stream_of(kind: str, key: Any) -> str:
    """`user-17`; a key that no id may hold, too long or with control characters, is hashed."""
    text = str(key)
    if len(text) > MAX_KEY or not text.isprintable():
        text = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{kind}-{text}"


def rolled_back_class(entity: EntityPlan) -> type[TypedEvent] | None:
    """`user.rolled_back` for what emitted `user.migrated`, when such an event is registered."""
    cls = entity.mapping.event
    return event_class(f"{cls.declared_aggregate}.rolled_back") if cls is not None else None
