"""Traffic for the tests of the global order: writers with delays and rollbacks, and tailing readers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from uuid import UUID

import asyncpg

from eventsourcing import BaseEvent, EventQuery, EventStore, UnavailableError
from eventsourcing.events import new_event_id
from eventsourcing.storage.statements import statements
from tests.conformance.history import Entry, Reading, Verdict, judge

TYPES = ("order.placed", "order.paid", "order.sent")
SHARED = 4
_COLUMNS = "SELECT position, event_id, aggregate_id, event_version, event_type FROM events"

_INSERT_AT = """
INSERT INTO events (position, event_id, aggregate_id, event_type, aggregate_type, event_version, "timestamp",
                    metadata, data)
SELECT $1, $2, $3, $4, 'order', coalesce(max(event_version), 0) + 1, now(), '{}', '{}'
FROM events WHERE aggregate_id = $3
"""

Connect = Callable[[], Awaitable[asyncpg.Connection]]


async def write_raw(
    connection: asyncpg.Connection, name: str, *, transactions: int, delay_s: float, seed: int
) -> set[UUID]:
    """Append with plain SQL in transactions that dawdle before they commit or, one in five, roll back.

    Returns the ids whose commit was acknowledged.
    """
    chance = random.Random(seed)
    acknowledged: set[UUID] = set()
    for _ in range(transactions):
        ids: set[UUID] = set()
        transaction = connection.transaction()
        await transaction.start()
        try:
            for _ in range(chance.randint(1, 3)):
                ids.add(await _insert(connection, f"own-{name}", chance))
                await asyncio.sleep(chance.random() * delay_s)
            if chance.random() < 0.3:  # last, so that two transactions never wait for each other
                ids.add(await _insert(connection, f"shared-{chance.randrange(SHARED)}", chance))
                await asyncio.sleep(chance.random() * delay_s)
            if chance.random() < 0.2:
                await transaction.rollback()
                continue
            await transaction.commit()
            acknowledged |= ids
        except asyncpg.UniqueViolationError:  # somebody else took the shared aggregate's version
            await transaction.rollback()
    return acknowledged


async def write_early(
    connection: asyncpg.Connection, *, transactions: int, delay_s: float, seed: int
) -> set[UUID]:
    """The planted fault: it holds the horizon and draws its position, and only then resolves its version."""
    chance = random.Random(seed)
    acknowledged: set[UUID] = set()
    for _ in range(transactions):
        event_id = new_event_id()
        try:
            async with connection.transaction():
                await connection.execute("SELECT hold_horizon()")
                position = await connection.fetchval("SELECT nextval('event_positions')")
                await asyncio.sleep(chance.random() * delay_s)
                shared = f"shared-{chance.randrange(SHARED)}"
                await connection.execute(_INSERT_AT, position, event_id, shared, chance.choice(TYPES))
        except asyncpg.UniqueViolationError:
            continue
        acknowledged.add(event_id)
    return acknowledged


async def _insert(connection: asyncpg.Connection, aggregate_id: str, chance: random.Random) -> UUID:
    event_id = new_event_id()
    await connection.execute(
        statements("events")["append_one"],
        *(
            event_id,
            chance.choice(TYPES),
            aggregate_id,
            "order",
            0,
            datetime.now(UTC),
            None,
            None,
            "{}",
            "{}",
        ),
    )
    return event_id


async def write_through_store(store: EventStore, *, appends: int, delay_s: float, seed: int) -> set[UUID]:
    """Append batches through the store, on shared aggregates; returns the ids acknowledged."""
    chance = random.Random(seed)
    acknowledged: set[UUID] = set()
    for _ in range(appends):
        batch = [
            BaseEvent(
                event_type=chance.choice(TYPES),
                aggregate_id=f"shared-{chance.randrange(SHARED)}",
                aggregate_type="order",
            )
            for _ in range(chance.choice((1, 1, 2, 5)))
        ]
        try:
            acknowledged |= {event.event_id for event in await store.append_events(batch)}
        except UnavailableError:  # it lost too many races for the shared aggregates: nothing is stored
            continue
        await asyncio.sleep(chance.random() * delay_s)
    return acknowledged


def follow_reader(
    store: EventStore, name: str, *, event_types: tuple[str, ...] = (), aggregate_id: str | None = None
) -> Reader:
    """A reader that follows the store, perhaps some types or one aggregate only."""
    query = EventQuery(event_types=event_types, aggregate_id=aggregate_id)
    reading = Reading(
        name,
        lambda entry: (
            entry.event_type in (event_types or (entry.event_type,))
            and entry.aggregate_id == (aggregate_id or entry.aggregate_id)
        ),
    )

    async def read() -> None:
        async for piece in store.follow(query, batch_size=50):
            reading.take(map(entry_of, piece.events), piece.position)

    return reading, read


def paging_reader(store: EventStore, name: str) -> Reader:
    """A reader that asks for all events after the last one it saw, again and again."""
    reading = Reading(name)

    async def read() -> None:
        while True:
            async for event in store.get_all_events(after_position=reading.reached, batch_size=50):
                reading.take([entry_of(event)], event.position)
            await asyncio.sleep(0.002)

    return reading, read


def naive_reader(connection: asyncpg.Connection, name: str) -> Reader:
    """The planted fault: it remembers the last position it saw, and knows of no horizon."""
    reading = Reading(name)

    async def read() -> None:
        while True:
            rows = await connection.fetch(
                f"{_COLUMNS} WHERE position > $1 ORDER BY position LIMIT 50", reading.reached
            )
            entries = [Entry(**row) for row in rows]
            reading.take(entries, entries[-1].position if entries else reading.reached)
            await asyncio.sleep(0.002)

    return reading, read


def one_statement_reader(connection: asyncpg.Connection, name: str, *, pause_s: float) -> Reader:
    """The planted fault: the horizon and the events below it in one statement, and so in one snapshot.

    `pause_s` stands between the snapshot and the look at the locks. Without it the fault is rare.
    """
    reading = Reading(name)
    horizon = statements("events")["horizon"]
    read_at_once = f"""
    WITH pause AS MATERIALIZED (SELECT pg_sleep({pause_s})),
         reached AS MATERIALIZED (SELECT ({horizon}) AS horizon FROM pause)
    SELECT events.position, event_id, aggregate_id, event_version, event_type, reached.horizon
    FROM reached LEFT JOIN events ON events.position > $1 AND events.position <= reached.horizon
    ORDER BY events.position
    """

    async def read() -> None:
        while True:
            rows = [dict(row) for row in await connection.fetch(read_at_once, reading.reached)]
            reached = max(reading.reached, *(row.pop("horizon") for row in rows))
            reading.take([Entry(**row) for row in rows if row["position"] is not None], reached)

    return reading, read


Reader = tuple[Reading, Callable[[], Awaitable[None]]]


def entry_of(event: BaseEvent) -> Entry:
    """What the judge needs of an event."""
    return Entry(**{name: getattr(event, name) for name in Entry.__slots__})


async def observe(writers: list[Awaitable[set[UUID]]], readers: list[Reader], store: EventStore) -> Verdict:
    """Run writers against readers until everyone has read everything; judge what happened."""
    tasks = [asyncio.ensure_future(read()) for _, read in readers]
    try:
        acknowledged = set[UUID]().union(*await asyncio.gather(*writers))
        head = await store.storage.head()
        while any(reading.reached < head for reading, _ in readers):
            await asyncio.sleep(0.005)
            for task in tasks:
                if task.done():
                    task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    stored = [entry_of(event) async for event in store.read(EventQuery(), batch_size=10_000)]
    return judge(stored, acknowledged, [reading for reading, _ in readers])
