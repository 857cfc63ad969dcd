"""Batches over the same aggregates in other orders never wait for each other in a circle (DESIGN 4.2)."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from uuid import UUID

import asyncpg

from eventsourcing import EventStore
from eventsourcing.events import new_event_id
from eventsourcing.storage.statements import statements
from tests.conformance.conftest import Connect

WRITERS, ROUNDS, WIDTH = 6, 40, 12
SORTED = statements("events")["append_many"]
UNSORTED = SORTED.replace('ORDER BY aggregate_id COLLATE "C", position', "ORDER BY position")


async def test_sorted_batches_race_without_a_deadlock(postgres: EventStore, connect: Connect) -> None:
    assert await deadlocks(connect, SORTED, rounds=ROUNDS) == 0


async def test_planted_batches_in_the_callers_order_deadlock(postgres: EventStore, connect: Connect) -> None:
    assert UNSORTED != SORTED
    assert await deadlocks(connect, UNSORTED, rounds=10 * ROUNDS) > 0


async def deadlocks(connect: Connect, statement: str, *, rounds: int) -> int:
    """How many of the rounds passed until somebody's batch met a deadlock; 0 when none did."""
    connections = await asyncio.gather(*(connect() for _ in range(WRITERS)))
    for connection in connections:
        await connection.execute("SET deadlock_timeout = '5ms'")
    for round_ in range(1, rounds + 1):
        names = [f"round-{round_}-{n:02}" for n in range(WIDTH)]
        answers = await asyncio.gather(
            *(
                append(connection, statement, names if place % 2 else names[::-1])
                for place, connection in enumerate(connections)
            )
        )
        assert answers.count(None) > 0, "of the batches of a round one is stored at least"
        if any(isinstance(answer, asyncpg.DeadlockDetectedError) for answer in answers):
            return round_
    return 0


async def append(
    connection: asyncpg.Connection, statement: str, names: list[str]
) -> asyncpg.PostgresError | None:
    """Append one event to each aggregate, in this order; the error that the others of its round caused."""
    size = len(names)
    nobody: list[UUID | None] = [None] * size
    columns = (
        [new_event_id() for _ in names],
        ["order.placed"] * size,
        names,
        ["order"] * size,
        [0] * size,
        [datetime.now(UTC)] * size,
        nobody,
        nobody,
        ["{}"] * size,
        ["{}"] * size,
    )
    try:
        await connection.fetch(statement, *columns)
    except (asyncpg.UniqueViolationError, asyncpg.DeadlockDetectedError) as error:
        lost: asyncpg.PostgresError = error
        return lost
    return None
