"""Which stream and which events a record has."""

from __future__ import annotations

import hashlib
from typing import Any

from eventsourcing.events import TypedEvent, event_class
from pipelines.migration.plan import EntityPlan

_MAX_KEY = 200


def stream_of(kind: str, key: Any) -> str:
    """`user-17`; a key that no id may hold, too long or with control characters, is hashed."""
    text = str(key)
    if len(text) > _MAX_KEY or not text.isprintable():
        text = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{kind}-{text}"


def rolled_back_class(entity: EntityPlan) -> type[TypedEvent] | None:
    """`user.rolled_back` for what emitted `user.migrated`, when such an event is registered."""
    cls = entity.mapping.event
    return event_class(f"{cls.declared_aggregate}.rolled_back") if cls is not None else None
