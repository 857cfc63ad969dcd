"""The store as a dictionary: what it must answer, in thirty lines that nobody can get wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from eventsourcing import (
    BaseEvent,
    ConcurrencyError,
    DuplicateEventError,
    EventQuery,
    EventSourcingError,
    RecordedEvent,
)
from eventsourcing.canonical import decode, encode
from tests.factories import recorded

COMPARED = ("event_type", "aggregate_id", "aggregate_type", "correlation_id", "timestamp", "data", "metadata")


@dataclass(slots=True)
class DictStore:
    """Events in the order stored; an event's position here is its place among them."""

    events: dict[UUID, RecordedEvent] = field(default_factory=dict)

    def version(self, aggregate_id: str) -> int:
        """The version of the aggregate's last event; 0 without one."""
        return sum(event.aggregate_id == aggregate_id for event in self.events.values())

    def append(
        self, batch: Sequence[BaseEvent], expected: dict[str, int]
    ) -> list[RecordedEvent] | type[EventSourcingError]:
        """What the append answers: the events as stored, or the error it must raise."""
        fresh: dict[UUID, BaseEvent] = {}
        for event in batch:
            first = self.events.get(event.event_id) or fresh.setdefault(event.event_id, event)
            if any(getattr(first, name) != getattr(event, name) for name in COMPARED):
                return DuplicateEventError
            if event.event_version not in (0, first.event_version):
                return DuplicateEventError
        versions = {event.aggregate_id: self.version(event.aggregate_id) for event in fresh.values()}
        if any(expected.get(name, version) != version for name, version in versions.items()):
            return ConcurrencyError
        taken: dict[UUID, RecordedEvent] = {}
        for event in fresh.values():
            versions[event.aggregate_id] += 1
            if event.event_version not in (0, versions[event.aggregate_id]):
                return ConcurrencyError
            position = len(self.events) + len(taken) + 1
            taken[event.event_id] = recorded(event, position=position, version=versions[event.aggregate_id])
        self.events |= taken
        return [self.events[event.event_id] for event in batch]

    def read(self, query: EventQuery) -> list[RecordedEvent]:
        """The events of a query, in its order."""
        found = [event for event in self.events.values() if query.matches(event)]
        return (found[::-1] if query.backwards else found)[: query.limit]

    def statistics(self) -> dict[str, Any]:
        """What get_event_stats answers."""
        events = self.events.values()
        latest = max((event.timestamp for event in events), default=None)
        return {
            "total_events": len(events),
            "events_by_type": dict(Counter(event.event_type for event in events)),
            "events_by_aggregate_type": dict(Counter(event.aggregate_type for event in events)),
            "latest_event_timestamp": decode(encode(latest)),
        }
