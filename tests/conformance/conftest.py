"""What only the PostgreSQL tests need: a store with its URL known, and plain connections beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from eventsourcing import EventStore
from eventsourcing.storage.postgres import PostgresStorage

Connect = Callable[[], Awaitable[asyncpg.Connection]]


@pytest.fixture
async def postgres(database_url: str) -> AsyncIterator[EventStore]:
    """An empty store on PostgreSQL."""
    async with EventStore(storage=PostgresStorage(database_url)) as made:
        yield made


@pytest.fixture
async def connect(database_url: str) -> AsyncIterator[Connect]:
    """Open plain connections to the same database; all are closed at the end."""
    opened: list[asyncpg.Connection] = []
    url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)

    async def open_connection() -> asyncpg.Connection:
        opened.append(await asyncpg.connect(url))
        return opened[-1]

    yield open_connection
    for connection in opened:
        connection.terminate()


@pytest.fixture
async def administrator(connect: Connect) -> asyncpg.Connection:
    """A plain connection of the superuser to the store's database, for planting faults."""
    return await connect()
