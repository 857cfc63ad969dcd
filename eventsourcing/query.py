"""EventQuery: the one description of a set of events, for every getter, replay, filter and stream."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventsourcing.canonical import refuse_text, utc

if TYPE_CHECKING:
    from eventsourcing.events import RecordedEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class EventQuery:
    """Which events, in which direction. Every condition given must hold; an empty query is all events.

    Versions and times are inclusive at both ends; `after_position` is exclusive, `to_position`
    inclusive. Events come by position, which within one aggregate is version order; `backwards`
    turns it round. `limit` None means all. Raises InvalidEventError for text that no event can hold.
    """

    aggregate_id: str | None = None
    event_id: UUID | None = None
    event_types: tuple[str, ...] = ()
    aggregate_types: tuple[str, ...] = ()
    correlation_id: UUID | None = None
    from_timestamp: datetime | None = None
    to_timestamp: datetime | None = None
    from_version: int | None = None
    to_version: int | None = None
    after_position: int | None = None
    to_position: int | None = None
    limit: int | None = None
    backwards: bool = False

    def __post_init__(self) -> None:
        for name in ("from_timestamp", "to_timestamp"):
            moment = getattr(self, name)
            if moment is not None:
                object.__setattr__(self, name, utc(moment))
        for name in ("aggregate_id", "event_types", "aggregate_types"):
            given = getattr(self, name) or ()
            for text in (given,) if isinstance(given, str) else given:
                refuse_text(text, name)

    def where(self, **changes: Any) -> EventQuery:
        """The same query with some conditions replaced."""
        return replace(self, **changes)

    def matches(self, event: RecordedEvent) -> bool:
        """Whether one event is in the set; the limit does not count here."""
        return (
            (self.aggregate_id is None or event.aggregate_id == self.aggregate_id)
            and (self.event_id is None or event.event_id == self.event_id)
            and (not self.event_types or event.event_type in self.event_types)
            and (not self.aggregate_types or event.aggregate_type in self.aggregate_types)
            and (self.correlation_id is None or event.correlation_id == self.correlation_id)
            and (self.from_timestamp is None or event.timestamp >= self.from_timestamp)
            and (self.to_timestamp is None or event.timestamp <= self.to_timestamp)
            and (self.from_version is None or event.event_version >= self.from_version)
            and (self.to_version is None or event.event_version <= self.to_version)
            and (self.after_position is None or event.position > self.after_position)
            and (self.to_position is None or event.position <= self.to_position)
        )
