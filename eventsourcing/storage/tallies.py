"""Tallies: events that count by their number alone, counted where they are instead of being read.

A tally is one event that stands for many, and how many. It carries their type, aggregate type and latest
timestamp; where the tally is kept by a field of the payload, that field and the correlation too; nothing
else of it means anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from eventsourcing.canonical import comparable
from eventsourcing.events import EventType, RecordedEvent

_TYPES: dict[str, str] = {member.value: member for member in EventType}
_NOBODY = UUID(int=0)


@dataclass(frozen=True, slots=True)
class TallyQuery:
    """Which events to count, by position: `after` exclusive, `to` inclusive; no types means all.

    With `field` they are told apart by correlation and by that field of the payload as well.
    """

    after: int
    to: int
    types: frozenset[str] | None = None
    field: str | None = None


class Tally(NamedTuple):
    """An event that stands for `times` events."""

    event: RecordedEvent
    times: int


def count_in_memory(events: Iterable[RecordedEvent], query: TallyQuery) -> list[Tally]:
    """Count the events given, which lie between the query's positions."""
    found: dict[tuple[Any, ...], Tally] = {}
    for event in events:
        if query.types is not None and event.event_type not in query.types:
            continue
        data = {} if query.field is None else {query.field: event.data.get(query.field)}
        correlation = None if query.field is None else event.correlation_id
        key = (event.event_type, event.aggregate_type, correlation, comparable(data))
        known = found.get(key)
        latest = event.timestamp if known is None else max(known.event.timestamp, event.timestamp)
        times = 1 if known is None else known.times + 1
        found[key] = tally(event.event_type, event.aggregate_type, correlation, data, latest, times)
    return list(found.values())


def tally(
    event_type: str,
    aggregate_type: str,
    correlation_id: UUID | None,
    data: dict[str, Any],
    latest: datetime,
    times: int,
) -> Tally:
    """An event of which only these fields mean anything, and how many it stands for."""
    if latest.tzinfo is None:  # asyncpg keeps the first and the last moment as infinities
        latest = latest.replace(tzinfo=UTC)
    fields = {
        "event_id": _NOBODY,
        "event_type": _TYPES.get(event_type, event_type),
        "aggregate_id": "",
        "aggregate_type": aggregate_type,
        "event_version": 0,
        "timestamp": latest,
        "correlation_id": correlation_id,
        "causation_id": None,
        "metadata": {},
        "data": data,
        "position": 0,
        "recorded_at": latest,
    }
    return Tally(RecordedEvent.from_store(fields, as_stored=True), times)
