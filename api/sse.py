"""A stream of events to one client, as server-sent events: history from the store, then live.

States: history → live, and back to history when the client falls behind. Both read the same order of
positions, so nothing is missing and nothing comes twice across the change, whatever is appended
meanwhile. `id` is the position, and resuming after any `id` continues exactly there. Beside the
events: `caught-up` once, `fell-behind` for a slow client, and `checkpoint` when a filter has let
nothing through for a while, so that resuming need not read all that again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing

import anyio
from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from api.dependencies import event_json
from api.feed import MAX_BUFFERED_EVENTS, Encode, LiveFeed, Subscription
from eventsourcing import CursorAheadError, EventQuery, EventSourcingError, EventStore, RecordedEvent
from eventsourcing.metrics import gauge

log = logging.getLogger("esm.api.sse")

PING_S = 15
CHECKPOINT_S = 5.0
LOOK_AGAIN_S = 5.0
"""How often a stream asks whether its caller may still have it."""

STALLED_S = 300.0
"""A client that takes nothing for this long is gone."""

FAREWELL_S = 1.0
"""How long a stream may take to end on a signal before it is cut off."""

_BATCH = 200
_CHUNK_BYTES = 1024 * 1024
"""How much is read ahead of one client, give or take an event."""

_RETRY = b"retry: 2000\n\n"


def event_frame(event: RecordedEvent) -> bytes:
    """One event on the wire."""
    return _frame(event, event_json(event, masked=False))


def masked_frame(event: RecordedEvent) -> bytes:
    """One event on the wire, its personal data masked."""
    return _frame(event, event_json(event, masked=True))


def _frame(event: RecordedEvent, data: bytes) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.position, event.event_type.encode(), data)


async def first_position(
    store: EventStore, feed: LiveFeed, *, after: str | None, last_event_id: str | None
) -> int:
    """The position a stream begins after: the last id seen, else `after`, else the beginning.

    Raises CursorAheadError for a position that the store has not reached.
    """
    given = last_event_id or after or "0"
    async with feed.reading:
        if given == "now":
            return await store.horizon()
        position = int(given)
        await _require_reached(store, position)
    return position


async def _require_reached(store: EventStore, position: int) -> None:
    if position and position > (head := await store.storage.head()):
        raise CursorAheadError(position, head)


class EventStream:
    """The chunks of one client's stream; `encode` makes the frame of an event."""

    def __init__(
        self,
        store: EventStore,
        feed: LiveFeed,
        query: EventQuery,
        *,
        after: int,
        encode: Encode = event_frame,
    ) -> None:
        self._store, self._feed, self._query, self._encode = store, feed, query, encode
        self._position = self._told = after
        self._wake = asyncio.Event()
        self._ending = False

    def end(self) -> None:
        """Let the stream end in order, soon."""
        self._ending = True
        self._wake.set()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Frames until the end; a fault ends the stream too, and the client resumes at its last id."""
        yield _RETRY
        try:
            async with aclosing(self._chunks()) as chunks:  # leaves the feed at once, not when collected
                async for chunk in chunks:
                    yield chunk
        except EventSourcingError as error:
            log.warning("stream ended at position %d: %s", self._position, error)

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        announced = False
        while not self._ending:
            async for chunk in self._approach():
                yield chunk
            with self._feed.subscribe(
                self._query, after=self._position, wake=self._wake, encode=self._encode
            ) as live:
                async for chunk in self._history(live.start):
                    yield chunk
                if not announced:
                    announced = True
                    yield self._note(b"caught-up")
                async for chunk in self._live(live):
                    yield chunk
            if live.lost:
                await _require_reached(self._store, self._position)
                yield self._note(b"fell-behind")

    async def _approach(self) -> AsyncIterator[bytes]:
        """History, again and again, until the rest fits the buffer of a subscription."""
        near = False
        while not (near or self._ending):
            goal = await self._feed.position()
            near = goal - self._position <= MAX_BUFFERED_EVENTS
            async for chunk in self._history(goal):
                yield chunk

    async def _history(self, goal: int) -> AsyncIterator[bytes]:
        """What matches up to a position, from the store."""
        if goal <= self._position:
            return
        more = True
        while more and not self._ending:
            frames, last, more = await self._page(goal)
            self._position = last if more else goal
            if frames:
                self._told = last
                yield b"".join(frames)

    async def _page(self, goal: int) -> tuple[list[bytes], int, bool]:
        """The next events as frames, the last one's position, and whether there may be more; read when it is
        this stream's turn. A limit keeps the store from reading ahead."""
        query = self._query.where(after_position=self._position, to_position=goal, limit=_BATCH)
        frames: list[bytes] = []
        size, last = 0, self._position
        async with self._feed.reading:
            async for event in self._store.read(query, batch_size=_BATCH):
                frames.append(self._encode(event))
                size, last = size + len(frames[-1]), event.position
                if size > _CHUNK_BYTES:
                    break
        return frames, last, size > _CHUNK_BYTES or len(frames) == _BATCH

    async def _live(self, live: Subscription) -> AsyncIterator[bytes]:
        told_at = time.monotonic()
        while not (live.lost or self._ending):
            chunk = live.take()
            self._position = max(self._position, live.position)
            if not chunk and self._position > self._told and time.monotonic() - told_at >= CHECKPOINT_S:
                chunk = self._note(b"checkpoint")
            if chunk:
                self._told, told_at = self._position, time.monotonic()
                yield chunk
                continue
            self._wake.clear()
            pause = max(told_at + CHECKPOINT_S - time.monotonic(), 0.05)
            try:
                async with asyncio.timeout(pause if self._position > self._told else None):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _note(self, name: bytes) -> bytes:
        """A frame that is no event: everything up to its id has been sent."""
        position = self._position
        return b'id: %d\nevent: %s\ndata: {"position":%d}\n\n' % (position, name, position)


class StreamResponse(EventSourceResponse):
    """Sends a stream, pings, and ends it when the client leaves or the server is told to stop, or
    `still_admitted`, asked every five seconds, says that the caller may no longer have it."""

    def __init__(
        self, stream: EventStream, *, still_admitted: Callable[[], Awaitable[bool]] | None = None
    ) -> None:
        stopping = anyio.Event()

        async def end_when_stopping() -> None:
            while not stopping.is_set():
                with anyio.move_on_after(LOOK_AGAIN_S):
                    await stopping.wait()
                if still_admitted is not None and not await still_admitted():
                    log.info("a stream was ended: its caller may not have it any more")
                    break
            stream.end()

        super().__init__(
            stream.chunks(),
            sep="\n",
            ping=PING_S,
            send_timeout=STALLED_S,
            shutdown_event=stopping,
            shutdown_grace_period=FAREWELL_S,
            data_sender_callable=end_when_stopping,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream to its end."""
        _clients.add(self)
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            log.info("a stream was closed: its client took nothing for %d s", STALLED_S)
        finally:
            _clients.discard(self)


_clients: set[StreamResponse] = set()

gauge("es_sse_clients", "Open streams of events.", lambda: {(): len(_clients)})
