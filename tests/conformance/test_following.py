"""Following the store: history, then live, from one source without a gap or a repeat."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from eventsourcing import CursorAheadError, EventQuery, EventStore
from eventsourcing.tail import Slice
from tests.factories import draft, drafts
from tests.waiting import BOUND_S


async def until(slices: AsyncIterator[Slice], position: int) -> list[Slice]:
    """The slices up to the one that reaches the position."""
    taken: list[Slice] = []
    async with asyncio.timeout(BOUND_S):
        while not taken or taken[-1].position < position:
            taken.append(await anext(slices))
    return taken


async def test_history_comes_first_in_slices_and_the_last_one_is_caught_up(store: EventStore) -> None:
    stored = await store.append_events(drafts(10))
    slices = await until(store.follow(batch_size=4), stored[-1].position)
    assert [len(piece.events) for piece in slices] == [4, 4, 2]
    assert [event for piece in slices for event in piece.events] == stored
    assert [piece.caught_up for piece in slices] == [False, False, True]
    assert [piece.position for piece in slices] == [stored[n].position for n in (3, 7, 9)]


async def test_history_of_whole_pages_ends_caught_up_too(store: EventStore) -> None:
    stored = await store.append_events(drafts(8))
    slices = await until(store.follow(batch_size=4), stored[-1].position)
    assert [event for piece in slices for event in piece.events] == stored
    assert slices[-1].caught_up


async def test_an_empty_store_is_caught_up_at_once(store: EventStore) -> None:
    assert await anext(store.follow()) == Slice([], 0, caught_up=True)


async def test_what_is_appended_later_follows_live(store: EventStore) -> None:
    slices = store.follow()
    first = await store.append_event(draft())
    assert (await until(slices, first.position))[-1].events == [first]
    for _ in range(3):
        later = await store.append_events(drafts(2))
        live = await until(slices, later[-1].position)
        assert [event for piece in live for event in piece.events] == later
        assert live[-1].caught_up


async def test_a_reader_that_waits_is_woken_by_an_append(store: EventStore) -> None:
    slices = store.follow()
    await anext(slices)
    waiting = asyncio.ensure_future(anext(slices))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    stored = await store.append_event(draft())
    async with asyncio.timeout(BOUND_S):
        assert (await waiting).events == [stored]


async def test_a_position_is_exclusive(store: EventStore) -> None:
    stored = await store.append_events(drafts(3))
    slices = await until(store.follow(after=stored[0].position), stored[-1].position)
    assert [event for piece in slices for event in piece.events] == stored[1:]
    [nothing] = await until(store.follow(after=stored[-1].position), stored[-1].position)
    assert nothing == Slice([], stored[-1].position, caught_up=True)


async def test_a_filtered_reader_moves_past_what_it_does_not_want(store: EventStore) -> None:
    query = EventQuery(event_types=("order.paid",))
    slices = store.follow(query, batch_size=2)
    paid = await store.append_event(draft(event_type="order.paid"))
    others = await store.append_events(drafts(5))
    history = await until(slices, others[-1].position)
    assert [event for piece in history for event in piece.events] == [paid]
    more = await store.append_events(drafts(2))
    live = await until(slices, more[-1].position)
    assert all(not piece.events for piece in live)
    assert live[-1].position == more[-1].position


async def test_a_stream_may_be_followed_alone(store: EventStore) -> None:
    stored = await store.append_events([draft("a"), draft("b"), draft("a")])
    slices = await until(store.follow(EventQuery(aggregate_id="a"), batch_size=1), stored[-1].position)
    assert [event for piece in slices for event in piece.events] == [stored[0], stored[2]]


async def test_several_readers_each_get_everything(store: EventStore) -> None:
    async def read() -> list[int]:
        seen: list[int] = []
        async for piece in store.follow(batch_size=3):
            seen += [event.position for event in piece.events]
            if len(seen) >= 20:
                break
        return seen

    readers = [asyncio.ensure_future(read()) for _ in range(4)]
    positions = [(await store.append_event(draft(f"order-{n}"))).position for n in range(20)]
    async with asyncio.timeout(BOUND_S):
        assert await asyncio.gather(*readers) == [positions] * 4


async def test_a_reader_that_starts_ahead_of_the_store_is_told(store: EventStore) -> None:
    stored = await store.append_event(draft())
    with pytest.raises(CursorAheadError) as caught:
        await anext(store.follow(after=stored.position + 1))
    assert (caught.value.cursor, caught.value.head) == (stored.position + 1, stored.position)


async def test_a_reader_of_a_store_restored_to_an_earlier_state_is_told(
    postgres: EventStore, administrator: asyncpg.Connection
) -> None:
    await postgres.append_events(drafts(5))
    slices = postgres.follow()
    await anext(slices)
    await administrator.execute("ALTER TABLE events DISABLE TRIGGER USER; TRUNCATE events")
    await administrator.execute("ALTER SEQUENCE event_positions RESTART; SELECT nextval('event_positions')")
    async with asyncio.timeout(BOUND_S):
        with pytest.raises(CursorAheadError):
            await anext(slices)
