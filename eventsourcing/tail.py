"""Follow the store: history from a position, then live, from one source without a gap or a repeat.

Near the head one cheap statement every 20 ms asks whether anything was appended; the horizon is asked
only then. Far behind it, one horizon serves all the pages up to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from eventsourcing.errors import CursorAheadError, UpcastError
from eventsourcing.events import RecordedEvent
from eventsourcing.query import EventQuery
from eventsourcing.storage.base import EventStorage
from eventsourcing.unreadable import Batch, read_past_faults

_FLOOR_S = 1.0
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.005, 0.25


@dataclass(frozen=True, slots=True)
class Slice:
    """What lies between two positions: the events that match, and how far the reader has come.

    `caught_up` says that nothing more was visible when the slice was read. `faults` are, by position, those
    of events that stand here as stored, for their payload cannot be read.
    """

    events: list[RecordedEvent]
    position: int
    caught_up: bool
    faults: Mapping[int, UpcastError] = field(default_factory=dict)


async def follow(
    storage: EventStorage,
    query: EventQuery,
    *,
    after: int,
    batch_size: int = 500,
    past_faults: bool = False,
) -> AsyncIterator[Slice]:
    """Yield slices for ever, in position order, each at or below the horizon.

    The first slice that reaches the horizon is caught up, events or not; after it, only slices that
    moved are yielded. Raises CursorAheadError when `after` lies above the head, UpcastError once all
    before an event that cannot be read is yielded; with `past_faults` that event is yielded as it is
    stored, with its fault, and the stream goes on.
    """
    position, pause, announced = after, _FIRST_PAUSE_S, False
    while True:
        horizon = await storage.horizon()
        if horizon < position and position > (head := await storage.head()):
            raise CursorAheadError(position, head)
        if horizon > position or not announced:
            rest = Batch([])
            upto = max(horizon, position)
            window = query.where(after_position=position, to_position=upto)
            try:
                async for batch in _batches(storage, window, batch_size, past_faults=past_faults):
                    if rest.events:
                        yield Slice(rest.events, rest.events[-1].position, False, rest.faults)
                    rest = batch
            except UpcastError:
                if rest.events:
                    yield Slice(rest.events, rest.events[-1].position, caught_up=False)
                raise
            position, pause, announced = upto, _FIRST_PAUSE_S, True
            yield Slice(rest.events, position, True, rest.faults)
        elif await storage.wait(position, timeout_s=_FLOOR_S):
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LAST_PAUSE_S)


async def _batches(
    storage: EventStorage, query: EventQuery, batch_size: int, *, past_faults: bool
) -> AsyncIterator[Batch]:
    if past_faults:
        async for batch in read_past_faults(storage, query, batch_size=batch_size):
            yield batch
    else:
        async for events in storage.read(query, batch_size=batch_size):
            yield Batch(events)
