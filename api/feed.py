"""The live feed: one tailer of the store serves every stream of the process.

It runs only while somebody is subscribed. A subscription begins at the feed's position, and whoever
has read the store up to there misses nothing and gets nothing twice. Each event is encoded once for
all subscribers that get it in the same form. A subscriber that does not keep up with 1000 events or
2 MiB loses its place in the feed, never an event: it goes back to the store.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from eventsourcing import CursorAheadError, EventQuery, EventStore, RecordedEvent
from eventsourcing.tail import Slice

log = logging.getLogger("esm.api.feed")

READERS = 4
"""How many streams read history at a time: a crowd that resumes at once waits its turn, and not in vain for
a connection."""

MAX_BUFFERED_EVENTS = 1000
MAX_BUFFERED_BYTES = 2 * 1024 * 1024

_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.2, 5.0

Encode = Callable[[RecordedEvent], bytes]
"""Makes of an event what a subscriber gets."""


class Subscription:
    """The live events of one subscriber, encoded, until they are taken.

    `position` is how far the feed has come; everything that matches up to there was or is buffered.
    Once `lost`, the buffer is empty and stays so: what was not taken must be read from the store.
    """

    def __init__(self, query: EventQuery, position: int, wake: asyncio.Event, encode: Encode) -> None:
        self.position = self.start = position
        self.lost = False
        self.encode = encode
        self._query, self._wake = query, wake
        self._frames: deque[bytes] = deque()
        self._size = 0

    def offer(self, piece: Slice, encoded: dict[tuple[Encode, int], bytes]) -> None:
        """Take what matches of a slice; what lies at or below `position` was taken before. What is
        `encoded` already is taken so, and the rest is added."""
        frames = []
        for event in piece.events:
            if event.position > self.position and self._query.matches(event):
                key = (self.encode, event.position)
                if key not in encoded:
                    encoded[key] = self.encode(event)
                frames.append(encoded[key])
        self._frames += frames
        self._size += sum(map(len, frames))
        if len(self._frames) > MAX_BUFFERED_EVENTS or self._size > MAX_BUFFERED_BYTES:
            self.lose()
        else:
            self.position = max(self.position, piece.position)
        self._wake.set()

    def lose(self) -> None:
        """Send the subscriber back to the store."""
        self.lost = True
        self._frames.clear()
        self._size = 0
        self._wake.set()

    def take(self) -> bytes:
        """What is buffered, up to `position`; empty when there is nothing."""
        taken = b"".join(self._frames)
        self._frames.clear()
        self._size = 0
        return taken


class LiveFeed:
    """One tailer and its subscribers. `encode` makes what a subscriber gets who names nothing else."""

    def __init__(self, store: EventStore, encode: Encode) -> None:
        self._store, self._encode = store, encode
        self.reading = asyncio.Semaphore(READERS)
        """Held by whoever reads the store for a stream, a page at a time."""
        self._subscriptions: set[Subscription] = set()
        self._tailer: asyncio.Task[None] | None = None
        self._position = 0

    @property
    def subscribers(self) -> int:
        """How many subscriptions there are."""
        return len(self._subscriptions)

    async def position(self) -> int:
        """Where a subscription would begin now."""
        if self._tailer is not None:
            return self._position
        async with self.reading:
            return await self._store.horizon()

    @contextmanager
    def subscribe(
        self, query: EventQuery, *, after: int, wake: asyncio.Event, encode: Encode | None = None
    ) -> Iterator[Subscription]:
        """Buffer the live events above `after` that match, from the feed's position on.

        `wake` is set whenever there may be something to take.
        """
        if self._tailer is None:
            self._position = after
            self._tailer = asyncio.create_task(self._tail(), name="live feed")
        subscription = Subscription(query, max(after, self._position), wake, encode or self._encode)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            if not self._subscriptions and self._tailer is not None:
                self._tailer.cancel()
                self._tailer = None

    async def _tail(self) -> None:
        pause, mine = _FIRST_PAUSE_S, asyncio.current_task()
        while self._tailer is mine:
            try:
                async for piece in self._store.follow(after=self._position):
                    if self._tailer is not mine:
                        return
                    pause = _FIRST_PAUSE_S
                    self._deliver(piece)
            except CursorAheadError as error:
                log.warning("the store was restored to an earlier state: %s", error)
                for subscription in self._subscriptions:
                    subscription.lose()
                self._position = error.head
            except Exception as error:  # noqa: BLE001 - the supervising loop of the streams
                log.warning("live feed paused: %s", error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LAST_PAUSE_S)

    def _deliver(self, piece: Slice) -> None:
        self._position = piece.position
        encoded: dict[tuple[Encode, int], bytes] = {}
        for subscription in tuple(self._subscriptions):
            if not subscription.lost:
                subscription.offer(piece, encoded)
