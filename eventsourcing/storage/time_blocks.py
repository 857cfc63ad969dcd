"""Windows of time as ranges of positions: blocks of positions know when their events happened.

A block is written once all its positions lie behind the horizon, by whoever reads a window of time and
finds it missing; so the first such read after a large append pays for the summary, and no append does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import asyncpg

from eventsourcing.query import EventQuery
from eventsourcing.storage.postgres_pool import ConnectionPool
from eventsourcing.storage.statements import statements

BLOCK = 2**13
"""Positions in a block; stands in `add_blocks` too."""

BLOCKS_AT_ONCE = 128
_LAST = 2**63 - 1
_EVENTS = statements("events")

Range = tuple[int, int]
"""Positions above the first and up to the second."""


async def narrowed(pool: ConnectionPool, query: EventQuery, horizon: int) -> list[EventQuery]:
    """The query cut into the ranges of positions that its window of time may touch, in its order."""
    summarised = await _summarise(pool, horizon)
    blocks = await pool.fetch(_EVENTS["blocks_between"], query.from_timestamp, query.to_timestamp)
    spans = [*ranges(row["block"] for row in blocks), (summarised * BLOCK - 1, _LAST)]
    after, upto = query.after_position or 0, _LAST if query.to_position is None else query.to_position
    cut = [
        query.where(after_position=max(first, after), to_position=min(last, upto))
        for first, last in spans
        if max(first, after) < min(last, upto)
    ]
    return cut[::-1] if query.backwards else cut


async def _summarise(pool: ConnectionPool, horizon: int) -> int:
    """Write the blocks that are missing; the number of the first one that is not written."""
    following: int = await pool.fetchval(_EVENTS["next_block"])
    complete = (horizon + 1) // BLOCK
    # Who may only read, or reads a server that is read-only, reads what is not summarised.
    with suppress(asyncpg.InsufficientPrivilegeError, asyncpg.ReadOnlySQLTransactionError):
        while following < complete:
            upto = min(following + BLOCKS_AT_ONCE, complete)
            async with pool.acquire() as connection:
                await connection.execute(_EVENTS["add_blocks"], following * BLOCK, upto * BLOCK)
            following = upto
    return following


def ranges(blocks: Iterator[int]) -> Iterator[Range]:
    """Ranges of adjacent blocks."""
    first = last = next(blocks, None)
    for block in blocks:
        if last is not None and block > last + 1:
            yield _range(first or 0, last)
            first = block
        last = block
    if last is not None:
        yield _range(first or 0, last)


def _range(first: int, last: int) -> Range:
    return first * BLOCK - 1, (last + 1) * BLOCK - 1
