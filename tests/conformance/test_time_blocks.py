"""Windows of time: the same events as a look at every one, and only the blocks that they can lie in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from random import Random

import asyncpg
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from eventsourcing import EventQuery, EventStore
from eventsourcing.storage import time_blocks
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.storage.postgres_pool import ConnectionPool

BEGAN = datetime(2024, 1, 1, tzinfo=UTC)
BLOCK = time_blocks.BLOCK
LOOKER = """
CREATE ROLE looker;
GRANT USAGE ON SCHEMA public TO looker;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO looker
"""


def at(minutes: int) -> datetime:
    return BEGAN + timedelta(minutes=minutes)


async def filled(store: EventStore, blocks: float) -> list[int]:
    """Events over so many blocks, a minute apart, one block of them from long ago; their minutes."""
    count = int(BLOCK * blocks)
    minutes = [place - 10_000_000 if place // BLOCK == 2 else place for place in range(1, count + 1)]
    rows = pl.DataFrame(
        {
            "event_type": ["even.happened" if minute % 2 == 0 else "odd.happened" for minute in minutes],
            "aggregate_id": [f"stream-{minute}" for minute in minutes],
            "aggregate_type": ["minute"] * count,
            "timestamp": [at(minute) for minute in minutes],
            "data": [f'{{"minute":{minute}}}' for minute in minutes],
        }
    )
    await store.append_frame(rows, name="minutes")
    return minutes


async def found(store: EventStore, query: EventQuery) -> list[int]:
    return [event.data["minute"] async for event in store.read(query, batch_size=3000)]


async def test_a_window_finds_what_a_look_at_every_event_finds(postgres: EventStore) -> None:
    minutes = await filled(postgres, 5.5)
    random = Random(11)
    for _ in range(12):
        first, last = sorted(random.choices([*minutes, -20_000_000, 10_000_000], k=2))
        after, upto = sorted((random.randrange(len(minutes)), random.randrange(len(minutes))))
        expected = [
            minute
            for position, minute in enumerate(minutes, start=1)
            if first <= minute <= last and after < position <= upto
        ]
        query = EventQuery(
            from_timestamp=at(first), to_timestamp=at(last), after_position=after, to_position=upto
        )
        assert await found(postgres, query) == expected
        assert await found(postgres, query.where(backwards=True)) == expected[::-1]
        assert await found(postgres, query.where(limit=5000)) == expected[:5000]
        odd = [minute for minute in expected if minute % 2]
        assert await found(postgres, query.where(event_types=("odd.happened",))) == odd


async def test_a_window_reads_only_the_blocks_it_can_touch(postgres: EventStore) -> None:
    await filled(postgres, 5.5)
    storage = postgres.storage
    assert isinstance(storage, PostgresStorage)
    horizon = await postgres.horizon()

    async def ranges(first: int, last: int) -> list[tuple[int | None, int | None]]:
        query = EventQuery(from_timestamp=at(first), to_timestamp=at(last))
        parts = await time_blocks.narrowed(storage.pool, query, horizon)
        return [(part.after_position, part.to_position) for part in parts][:-1]  # the last one is the tail

    assert await ranges(3 * BLOCK + 5, 3 * BLOCK + 6) == [(3 * BLOCK - 1, 4 * BLOCK - 1)]
    assert await ranges(-10_000_000, -1) == [(2 * BLOCK - 1, 3 * BLOCK - 1)]
    assert await ranges(5, 3 * BLOCK + 6) == [(0, 2 * BLOCK - 1), (3 * BLOCK - 1, 4 * BLOCK - 1)]
    assert await ranges(-50_000_000, -40_000_000) == []


async def test_what_is_not_behind_the_horizon_is_not_summarised(
    postgres: EventStore, administrator: asyncpg.Connection
) -> None:
    """A block written too early would hide what appears in it later."""
    transaction = administrator.transaction()
    await transaction.start()
    await administrator.execute("SELECT hold_horizon(), nextval('event_positions')")
    minutes = await filled(postgres, 2)
    window = EventQuery(from_timestamp=at(5), to_timestamp=at(6))
    assert await found(postgres, window) == [5, 6]
    assert await administrator.fetchval("SELECT count(*) FROM event_blocks") == 0
    await transaction.rollback()
    assert await found(postgres, window) == [5, 6]
    assert await administrator.fetchval("SELECT count(*) FROM event_blocks") == len(minutes) // BLOCK


async def test_who_may_not_write_blocks_reads_without_them(
    postgres: EventStore, administrator: asyncpg.Connection, database_url: str
) -> None:
    await filled(postgres, 1.5)
    await administrator.execute(LOOKER)
    pool = ConnectionPool(
        make_url(database_url),
        size=1,
        settings={"role": "looker"},
        statement_timeout_s=10,
        wait_s=10,
        before_session=lambda: None,
    )
    await pool.open()
    try:
        query = EventQuery(from_timestamp=at(5), to_timestamp=at(6))
        parts = await time_blocks.narrowed(pool, query, 10**6)
        assert [(part.after_position, part.to_position) for part in parts] == [(0, 2**63 - 1)]
    finally:
        await pool.close()
        await administrator.execute("DROP OWNED BY looker; DROP ROLE looker")


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(0, 40)))
def test_adjacent_blocks_are_one_range(blocks: set[int]) -> None:
    joined = list(time_blocks.ranges(iter(sorted(blocks))))
    covered = {block for first, last in joined for block in range((first + 1) // BLOCK, (last + 1) // BLOCK)}
    assert covered == blocks
    assert all(left[1] < right[0] for left, right in pairwise(joined))
