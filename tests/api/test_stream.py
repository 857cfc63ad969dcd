"""The stream of one client: complete and in order, whatever happens while it is read."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import pytest

import api.feed
import api.sse
from api.feed import LiveFeed
from api.sse import EventStream, event_frame, first_position
from eventsourcing import (
    BaseEvent,
    CursorAheadError,
    EventQuery,
    EventStore,
    UnavailableError,
    UserMigratedEvent,
)
from eventsourcing.tail import Slice

Frame = tuple[int, str, Any]


def an_event(number: int, **changes: Any) -> BaseEvent:
    return UserMigratedEvent(
        user_id=f"user-{number}", username="u", source_data={}, target_data={"text": "a\nb\r\n"}, **changes
    )


def parsed(chunk: bytes) -> list[Frame]:
    """The frames of a chunk, each complete."""
    frames = []
    assert chunk.endswith(b"\n\n")
    for block in chunk.decode().strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        if "event" in fields:
            frames.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return frames


@pytest.fixture
def feed(store: EventStore) -> LiveFeed:
    """A live feed over the store."""
    return LiveFeed(store, event_frame)


async def frames_of(stream: EventStream) -> AsyncGenerator[Frame, None]:
    async with aclosing(stream.chunks()) as chunks:
        async for chunk in chunks:
            for frame in parsed(chunk):
                yield frame


async def read_until(stream: EventStream, position: int) -> list[Frame]:
    """The frames of a stream up to the one with this id."""
    found = []
    async with aclosing(frames_of(stream)) as frames:
        async for frame in frames:
            found.append(frame)
            if frame[0] >= position and frame[1] not in ("caught-up", "fell-behind"):
                return found
    return found


def events_in(frames: list[Frame]) -> list[int]:
    return [position for position, _, data in frames if "event_id" in data]


async def test_history_then_caught_up_then_live(store: EventStore, feed: LiveFeed) -> None:
    first = await store.append_events([an_event(number) for number in range(3)])
    stream = EventStream(store, feed, EventQuery(), after=0)
    frames = frames_of(stream)
    seen = [await anext(frames) for _ in range(4)]
    assert events_in(seen) == [event.position for event in first]
    assert seen[3][1] == "caught-up"
    assert seen[3][0] == first[-1].position
    assert seen[0][1] == "user.migrated"
    assert seen[0][2]["event_id"] == str(first[0].event_id)
    assert seen[0][2]["data"]["target_data"] == {"text": "a\nb\r\n"}
    live = await store.append_event(an_event(9))
    assert (await anext(frames))[2]["event_id"] == str(live.event_id)
    assert feed.subscribers == 1
    await frames.aclose()
    assert feed.subscribers == 0


async def test_resuming_anywhere_gives_every_event_once(store: EventStore, feed: LiveFeed) -> None:
    """Writers append while clients read, drop the stream at random, and resume at the last id."""
    chance = random.Random(7)
    total, done = 120, asyncio.Event()

    async def write() -> None:
        for number in range(0, total, 4):
            await asyncio.gather(*(store.append_event(an_event(number + n)) for n in range(4)))
            await asyncio.sleep(chance.random() / 200)
        done.set()

    async def read(client: random.Random) -> list[int]:
        positions: list[int] = []
        last = 0
        while not (done.is_set() and len(positions) >= total):
            await asyncio.sleep(0)  # in memory nothing else lets the writer run
            stream = EventStream(store, feed, EventQuery(), after=last)
            left = client.randint(1, 20)
            async with aclosing(frames_of(stream)) as frames:
                async for position, _, data in frames:
                    last = position
                    if "event_id" in data:
                        positions.append(position)
                    left -= 1
                    if left == 0 or len(positions) >= total:
                        break
        return positions

    writer = asyncio.create_task(write())
    async with asyncio.timeout(60):
        readings = await asyncio.gather(*(read(random.Random(seed)) for seed in range(6)))
        await writer
    stored = [event.position async for event in store.get_all_events()]
    assert len(stored) == total
    assert all(reading == stored for reading in readings)


async def test_a_filtered_stream_advances_by_checkpoints(
    store: EventStore, feed: LiveFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.sse, "CHECKPOINT_S", 0.1)
    correlation = uuid4()
    await store.append_events([an_event(number) for number in range(5)])
    mine = await store.append_event(an_event(7, correlation_id=correlation))
    await store.append_event(an_event(8))
    frames = frames_of(EventStream(store, feed, EventQuery(correlation_id=correlation), after=0))
    seen = [await anext(frames) for _ in range(2)]
    assert [(position, name) for position, name, _ in seen] == [
        (mine.position, "user.migrated"),
        (mine.position + 1, "caught-up"),
    ]
    last = (await store.append_events([an_event(number + 10) for number in range(3)]))[-1]
    position, name, _ = await anext(frames)
    while position < last.position:
        assert name == "checkpoint"
        position, name, _ = await anext(frames)
    assert (position, name) == (last.position, "checkpoint")
    await frames.aclose()


async def test_a_slow_client_falls_behind_and_misses_nothing(
    store: EventStore, feed: LiveFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.feed, "MAX_BUFFERED_EVENTS", 10)
    monkeypatch.setattr(api.sse, "MAX_BUFFERED_EVENTS", 10)
    slow = frames_of(EventStream(store, feed, EventQuery(), after=0))
    assert (await anext(slow))[1] == "caught-up"
    other = EventStream(store, feed, EventQuery(), after=0)
    reading = asyncio.create_task(read_until(other, 60))
    expected: list[int] = []
    for turn in range(6):
        added = await store.append_events([an_event(turn * 10 + number) for number in range(10)])
        expected += [event.position for event in added]
        await asyncio.sleep(0.05)
    seen: list[Frame] = []
    while expected[-1] not in events_in(seen):
        seen.append(await anext(slow))
    assert [name for _, name, _ in seen].count("fell-behind") == 1
    assert "caught-up" not in {name for _, name, _ in seen}
    assert events_in(seen) == expected
    assert events_in(await asyncio.wait_for(reading, 10)) == expected
    await slow.aclose()


async def test_a_buffer_is_bounded_in_bytes_too(
    store: EventStore, feed: LiveFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.feed, "MAX_BUFFERED_BYTES", 1000)
    with feed.subscribe(EventQuery(), after=0, wake=asyncio.Event()) as live:
        recorded = await store.append_events([an_event(number) for number in range(10)])
        feed._deliver(Slice(recorded, recorded[-1].position, caught_up=True))
        assert live.lost
        assert live.take() == b""


async def test_streams_outlive_an_outage_of_the_store(store: EventStore) -> None:
    class Flaky(EventStore):
        failures = 2

        async def follow(self, *args: Any, **kwargs: Any) -> AsyncIterator[Slice]:
            if self.failures:
                self.failures -= 1
                raise UnavailableError("away")
            async for piece in super().follow(*args, **kwargs):
                yield piece

    flaky = Flaky(storage=store.storage)
    frames = frames_of(EventStream(flaky, LiveFeed(flaky, event_frame), EventQuery(), after=0))
    assert (await anext(frames))[1] == "caught-up"
    event = await store.append_event(an_event(1))
    async with asyncio.timeout(10):
        assert (await anext(frames))[0] == event.position
    await frames.aclose()


async def test_a_stream_ends_when_the_store_was_restored(store: EventStore) -> None:
    """Positions that the client has seen are gone: going on would skip what gets them again."""

    class Restored(EventStore):
        async def follow(self, *_: Any, **__: Any) -> AsyncIterator[Slice]:
            raise CursorAheadError(9, 0)
            yield

    restored = Restored(storage=store.storage)
    frames = [
        frame
        async for frame in frames_of(
            EventStream(restored, LiveFeed(restored, event_frame), EventQuery(), after=9)
        )
    ]
    assert [name for _, name, _ in frames] == ["caught-up"]


async def test_where_a_stream_begins(store: EventStore, feed: LiveFeed) -> None:
    recorded = await store.append_events([an_event(number) for number in range(3)])
    head = recorded[-1].position
    assert await first_position(store, feed, after=None, last_event_id=None) == 0
    assert await first_position(store, feed, after="now", last_event_id=None) == head
    assert await first_position(store, feed, after="2", last_event_id=None) == 2
    assert await first_position(store, feed, after="2", last_event_id="1") == 1
    assert await first_position(store, feed, after="now", last_event_id="1") == 1
    assert await first_position(store, feed, after="2", last_event_id="") == 2
    with pytest.raises(CursorAheadError):
        await first_position(store, feed, after=None, last_event_id=str(head + 1))


async def test_a_stream_may_begin_between_the_feed_and_the_head(store: EventStore, feed: LiveFeed) -> None:
    """Another stream's feed is a moment behind what this client has just written."""
    wake = asyncio.Event()
    with feed.subscribe(EventQuery(), after=0, wake=wake):
        recorded = await store.append_events([an_event(number) for number in range(3)])
        stream = EventStream(store, feed, EventQuery(), after=recorded[1].position)
        async with asyncio.timeout(10):
            frames = await read_until(stream, recorded[2].position)
        assert events_in(frames) == [recorded[2].position]


async def test_end_ends_a_stream_in_order(store: EventStore, feed: LiveFeed) -> None:
    stream = EventStream(store, feed, EventQuery(), after=0)
    frames = frames_of(stream)
    assert (await anext(frames))[1] == "caught-up"
    stream.end()
    async with asyncio.timeout(5):
        assert [frame async for frame in frames] == []
    assert feed.subscribers == 0
