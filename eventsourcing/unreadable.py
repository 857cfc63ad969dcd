"""Reading past events whose payload cannot be brought to the newest version.

Whoever only shows events stops at such a one and names it. Who must not let one event hold up all the
others gets it as it is stored, with the fault beside it: a consumer group parks its aggregate, a replay
counts it as an error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import NamedTuple

from eventsourcing.errors import UpcastError
from eventsourcing.events import RecordedEvent
from eventsourcing.query import EventQuery
from eventsourcing.storage.base import EventStorage


class Batch(NamedTuple):
    """Events in order, and by position the faults of those among them that stand here as stored."""

    events: list[RecordedEvent]
    faults: Mapping[int, UpcastError] = {}


async def read_past_faults(
    storage: EventStorage, query: EventQuery, *, batch_size: int
) -> AsyncIterator[Batch]:
    """Stream what `storage.read` streams, and behind an event that cannot be read the rest. Not backwards."""
    assert not query.backwards, "behind an event is where positions are higher"
    left = query.limit
    while left is None or left > 0:
        try:
            async for events in storage.read(query.where(limit=left), batch_size=batch_size):
                left = None if left is None else left - len(events)
                yield Batch(events)
        except UpcastError as fault:
            event = as_stored(fault)
            left = None if left is None else left - 1
            query = query.where(after_position=event.position)
            yield Batch([event], {event.position: fault})
        else:
            return


def as_stored(fault: UpcastError) -> RecordedEvent:
    """The event that could not be read, with its payload as it is stored."""
    return RecordedEvent.from_store(dict(fault.fields), as_stored=True)
