"""The quarantine of a migration, as its events tell it: what is set aside now, page by page.

A record's stream holds an event for each attempt that set it aside, and its release once a later
attempt let it go on. What stands is the newest of these; the one before it is history.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from eventsourcing.errors import NotFoundError
from eventsourcing.events import EventType, RecordedEvent
from eventsourcing.query import EventQuery
from eventsourcing.store import EventStore

FIELDS = ("entity", "source_key", "attempt", "stage", "rule", "column", "message", "also", "quarantined_at")
"""What a row of the quarantine says, in the order of an export."""

_KINDS = (EventType.RECORD_QUARANTINED, EventType.RECORD_RELEASED)


@dataclass(frozen=True, slots=True)
class QuarantinePage:
    """Some rows, in the order in which they were set aside; `after` is where the next page begins."""

    rows: list[dict[str, Any]]
    after: int | None


async def quarantined(
    store: EventStore, migration_id: str, *, after: int | None = None, limit: int = 100
) -> QuarantinePage:
    """The next records that stand in quarantine. Raises NotFoundError for no such migration."""
    correlation = await correlation_of(store, migration_id)
    query = EventQuery(
        correlation_id=correlation, event_types=(EventType.RECORD_QUARANTINED,), after_position=after
    )
    rows: list[dict[str, Any]] = []
    last = after
    async for event in store.read(query):
        if len(rows) == limit:
            return QuarantinePage(rows, last)
        if await _stands(store, event):
            rows.append({name: event.data.get(name) for name in FIELDS} | {"event_id": str(event.event_id)})
        last = event.position
    return QuarantinePage(rows, None)


async def correlation_of(store: EventStore, migration_id: str) -> UUID:
    """What all events of a migration share. Raises NotFoundError."""
    query = EventQuery(aggregate_id=migration_id, event_types=(EventType.MIGRATION_STARTED,), limit=1)
    async for event in store.read(query):
        return event.correlation_id or event.event_id
    raise NotFoundError("migration", migration_id)


async def _stands(store: EventStore, event: RecordedEvent) -> bool:
    """Whether nothing was said of the record since, in the same migration."""
    query = EventQuery(
        aggregate_id=event.aggregate_id,
        event_types=_KINDS,
        correlation_id=event.correlation_id,
        backwards=True,
        limit=1,
    )
    async for newest in store.read(query):
        return newest.event_id == event.event_id
    return False
