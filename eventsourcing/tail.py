"""Follow the store: history from a position, then live, from one source without a gap or a repeat.

Near the head one cheap statement every 20 ms asks whether anything was appended; the horizon is asked
only then. Far behind it, one horizon serves all the pages up to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from eventsourcing.errors import CursorAheadError, UpcastError
from eventsourcing.events import RecordedEvent
from eventsourcing.query import EventQuery
from eventsourcing.storage.base import EventStorage

_FLOOR_S = 1.0
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.005, 0.25


@dataclass(frozen=True, slots=True)
class Slice:
    """What lies between two positions: the events that match, and how far the reader has come.

    `caught_up` says that nothing more was visible when the slice was read.
    """

    events: list[RecordedEvent]
    position: int
    caught_up: bool


async def follow(
    storage: EventStorage, query: EventQuery, *, after: int, batch_size: int = 500
) -> AsyncIterator[Slice]:
    """Yield slices for ever, in position order, each at or below the horizon.

    The first slice that reaches the horizon is caught up, events or not; after it, only slices that
    moved are yielded. Raises CursorAheadError when `after` lies above the head, UpcastError once all
    before an event that cannot be read is yielded.
    """
    position, pause, announced = after, _FIRST_PAUSE_S, False
    while True:
        horizon = await storage.horizon()
        if horizon < position and position > (head := await storage.head()):
            raise CursorAheadError(position, head)
        if horizon > position or not announced:
            rest: list[RecordedEvent] = []
            upto = max(horizon, position)
            window = query.where(after_position=position, to_position=upto)
            try:
                async for batch in storage.read(window, batch_size=batch_size):
                    if rest:
                        yield Slice(rest, rest[-1].position, caught_up=False)
                    rest = batch
            except UpcastError:
                if rest:
                    yield Slice(rest, rest[-1].position, caught_up=False)
                raise
            position, pause, announced = upto, _FIRST_PAUSE_S, True
            yield Slice(rest, position, caught_up=True)
        elif await storage.wait(position, timeout_s=_FLOOR_S):
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LAST_PAUSE_S)
