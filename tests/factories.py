"""Short drafts for the tests: what a test does not name does not matter to it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from eventsourcing import BaseEvent, RecordedEvent
from eventsourcing.events import new_event_id

NOON = datetime(2024, 5, 1, 12, 0, tzinfo=UTC)


def draft(aggregate_id: str = "order-1", event_type: str = "order.placed", **fields: Any) -> BaseEvent:
    """An event of a type that nobody registered."""
    return BaseEvent(
        **{"event_type": event_type, "aggregate_id": aggregate_id, "aggregate_type": "order", **fields}
    )


def drafts(count: int, aggregate_id: str = "order-1", **fields: Any) -> list[BaseEvent]:
    """Several events of one aggregate, a minute apart."""
    return [
        draft(aggregate_id, timestamp=NOON + timedelta(minutes=number), data={"number": number}, **fields)
        for number in range(count)
    ]


def same(event: BaseEvent, **changes: Any) -> BaseEvent:
    """A second draft of the same event, as a caller who tries again builds it."""
    given = {name: getattr(event, name) for name in event.model_fields_set if name in BaseEvent.model_fields}
    return BaseEvent(**{**given, "event_id": event.event_id, **changes})


def recorded(event: BaseEvent, *, position: int, version: int = 1) -> RecordedEvent:
    """The event as a store would return it, at this position."""
    fields = {name: getattr(event, name) for name in BaseEvent.model_fields}
    return RecordedEvent.from_store(
        {**fields, "event_version": version, "position": position, "recorded_at": NOON}
    )


def unused_id() -> Any:
    """An id that no event has."""
    return new_event_id()
