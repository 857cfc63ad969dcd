"""Two chunks of a frame are written at the same time: in order, each atomic, whatever becomes of the other.

The first chunk is held by another transaction that has inserted one of its event ids and not yet ended;
the second one commits meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from uuid import UUID

import asyncpg
import polars as pl
import pytest

from eventsourcing import ConcurrencyError, EventQuery, EventStore, RecordedEvent
from eventsourcing.columnar import RowIds
from eventsourcing.frames import CHUNKS, AppendManifest
from eventsourcing.storage.postgres import PostgresStorage
from tests.conformance.conftest import Connect
from tests.conformance.history import Verdict
from tests.conformance.traffic import TYPES, follow_reader, observe, paging_reader, write_raw
from tests.factories import draft
from tests.waiting import until

STARTED = datetime(2024, 1, 1, tzinfo=UTC)
NAME = "at once"
CHUNK = 10
INSERT = """INSERT INTO events (event_id, event_type, aggregate_id, aggregate_type, event_version,
                                "timestamp", metadata, data)
            VALUES ($1, 'order.placed', 'elsewhere', 'order', 1, now(), '{}', '{}')"""
COPYING = """SELECT pid FROM pg_stat_activity WHERE datname = current_database()
             AND query LIKE 'COPY%' AND wait_event_type = 'Lock'"""


def frame(count: int, *, streams: int = 1_000, kind: str = "order", **columns: object) -> pl.DataFrame:
    plain = {
        "event_type": [TYPES[number % 3] for number in range(count)],
        "aggregate_id": [f"{kind}-{number % streams}" for number in range(count)],
        "aggregate_type": ["order"] * count,
        "data": [f'{{"number":{number}}}' for number in range(count)],
    }
    return pl.DataFrame({**plain, **columns})


def append(store: EventStore, rows: pl.DataFrame) -> asyncio.Task[object]:
    return asyncio.ensure_future(store.append_frame(rows, name=NAME, started_at=STARTED, chunk_rows=CHUNK))


async def stored(store: EventStore) -> list[RecordedEvent]:
    """What is stored of the frame, above the horizon too."""
    return [event async for event in store.read(EventQuery()) if event.data]


def in_order(events: list[RecordedEvent]) -> bool:
    """Whether every row is there once, and within each aggregate in version order."""
    versions: dict[str, int] = {}
    for event in events:
        if event.event_version != versions.get(event.aggregate_id, 0) + 1:
            return False
        versions[event.aggregate_id] = event.event_version
    return sorted(event.data["number"] for event in events) == list(range(len(events)))


@asynccontextmanager
async def first_chunk_held(connection: asyncpg.Connection) -> AsyncIterator[asyncpg.Transaction]:
    """Keep the first chunk from committing until the transaction given ends."""
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(INSERT, UUID(RowIds(NAME, STARTED).of(3, 1)[0]))
    yield transaction


async def held_pid(connect: Connect) -> int:
    """The server's process that waits with the first chunk."""
    connection = await connect()
    found: list[int] = []

    async def waits() -> bool:
        found[:] = [row["pid"] for row in await connection.fetch(COPYING)]
        return bool(found)

    await until(waits)
    return found[0]


async def second_chunk_committed(store: EventStore) -> None:
    async def there() -> bool:
        return len(await stored(store)) == CHUNK

    await until(there)


async def test_the_second_chunk_does_not_wait_for_the_first_and_no_reader_passes_it(
    postgres: EventStore, administrator: asyncpg.Connection
) -> None:
    before = (await postgres.append_event(draft("another"))).position
    async with first_chunk_held(administrator) as holder:
        call = append(postgres, frame(20))
        await second_chunk_committed(postgres)
        committed = await stored(postgres)
        assert [event.data["number"] for event in committed] == list(range(10, 20))
        assert before <= await postgres.horizon() < committed[0].position - CHUNK
        await holder.rollback()
    await call
    assert [event.data["number"] for event in await stored(postgres)] == list(range(20))


async def test_a_chunk_whose_connection_is_killed_is_written_again(
    postgres: EventStore, administrator: asyncpg.Connection, connect: Connect
) -> None:
    async with first_chunk_held(administrator) as holder:
        call = append(postgres, frame(40))
        pid = await held_pid(connect)
        await second_chunk_committed(postgres)
        await (await connect()).execute("SELECT pg_terminate_backend($1)", pid)
        await holder.rollback()
    manifest = await call
    assert in_order(events := await stored(postgres))
    assert len(events) == 40
    assert vars_of(manifest) == {"rows": 40, "appended": 40, "found": 0, "chunks": 4}
    assert isinstance(manifest, AppendManifest)
    assert (manifest.first_position, manifest.last_position) == (events[0].position, events[-1].position)


async def test_a_call_that_died_between_two_chunks_is_completed_by_the_next(
    postgres: EventStore, administrator: asyncpg.Connection
) -> None:
    async with first_chunk_held(administrator) as holder:
        call = append(postgres, frame(40))
        await second_chunk_committed(postgres)
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await holder.rollback()
    assert len(await stored(postgres)) == CHUNK, "the first chunk is undone as a whole"
    manifest = await append(postgres, frame(40))
    assert in_order(events := await stored(postgres))
    assert len(events) == 40
    assert vars_of(manifest)["rows"] == 40


async def test_a_chunk_that_is_refused_leaves_the_one_behind_it_and_its_entry(store: EventStore) -> None:
    versions = [2] + [0] * 39
    rows = frame(40, event_version=versions)
    with pytest.raises(ConcurrencyError):
        await append(store, rows)
    left = {event.data["number"] for event in await stored(store)}
    assert left in (set(), set(range(10, 20)))
    async with store.storage.transaction() as transaction:
        entries = [key[-10:] for key, _ in await transaction.scan(CHUNKS, prefix=NAME)]
    assert entries == (["0000000001"] if left else [])
    await store.append_event(draft("order-0"))
    manifest = await append(store, rows)
    assert vars_of(manifest) == {"rows": 40, "appended": 40, "found": 0, "chunks": 4}
    assert sorted(event.data["number"] for event in await stored(store)) == list(range(40))


async def test_chunks_that_share_an_aggregate_are_written_one_after_the_other(
    postgres: EventStore, administrator: asyncpg.Connection, connect: Connect
) -> None:
    """Else the first one, should it begin again, would come behind the second."""
    async with first_chunk_held(administrator) as holder:
        call = append(postgres, frame(40, streams=5))
        pid = await held_pid(connect)
        await (await connect()).execute("SELECT pg_terminate_backend($1)", pid)
        await asyncio.sleep(0.1)
        await holder.rollback()
    await call
    assert in_order(events := await stored(postgres))
    assert [event.data["number"] for event in events] == list(range(40))


async def test_one_connection_is_enough(
    postgres: EventStore, database_url: str, administrator: asyncpg.Connection, connect: Connect
) -> None:
    """A second chunk would wait in vain for the connection that the first one has."""
    narrow = PostgresStorage(database_url, pool_size=1, pool_wait_s=0.05)
    async with EventStore(storage=narrow) as store:
        async with first_chunk_held(administrator) as holder:
            call = append(store, frame(40))
            await held_pid(connect)
            await asyncio.sleep(0.2)
            await holder.rollback()
        assert vars_of(await call)["appended"] == 40
    assert [event.data["number"] for event in await stored(postgres)] == list(range(40))


async def test_no_reader_misses_repeats_or_goes_back_while_frames_are_appended(
    postgres: EventStore, database_url: str, connect: Connect
) -> None:
    async def write_frames(name: str) -> set[UUID]:
        kinds = (name, f"grown-{name}", f"grown-{name}")
        for number, kind in enumerate(kinds):
            rows = frame(200, kind=kind, streams=150)
            await postgres.append_frame(rows, name=f"{name}-{number}", started_at=STARTED, chunk_rows=20)
        ids = (RowIds(f"{name}-{number}", STARTED).of(0, 200) for number in range(len(kinds)))
        return {UUID(each) for of_call in ids for each in of_call}

    raw = partial(write_raw, transactions=25, delay_s=0.01)
    writers = [raw(await connect(), str(seed), seed=seed) for seed in range(6)]
    async with EventStore(storage=PostgresStorage(database_url)) as elsewhere:
        readers = [
            follow_reader(elsewhere, "all"),
            paging_reader(elsewhere, "pages"),
            follow_reader(elsewhere, "one type", event_types=TYPES[:1]),
        ]
        verdict = await observe([*writers, *map(write_frames, "abc")], readers, postgres)
    assert verdict.events > 1_800
    assert verdict == Verdict(events=verdict.events)


def vars_of(manifest: object) -> dict[str, int]:
    """How many rows, and what became of them."""
    return {name: getattr(manifest, name) for name in ("rows", "appended", "found", "chunks")}
