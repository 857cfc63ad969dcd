"""Every guarantee is held on memory and on the newest and the oldest PostgreSQL.

What only the PostgreSQL tests need stands here too: a store with its URL known, plain connections beside it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from eventsourcing import EventStore
from eventsourcing.storage.postgres import PostgresStorage
from tests.databases import Databases
from tests.servers import VERSIONS

Connect = Callable[[], Awaitable[asyncpg.Connection]]


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """Every PostgreSQL version in turn."""
    named: str = request.param
    return named


@pytest.fixture
def database_url(version: str, databases: Callable[[str], Databases]) -> str:
    """The URL of one empty database on every PostgreSQL version in turn; the same one throughout a test."""
    return databases(version).empty()


@pytest.fixture(params=["memory", *(f"postgres-{version}" for version in VERSIONS)])
async def store(
    request: pytest.FixtureRequest, databases: Callable[[str], Databases]
) -> AsyncIterator[EventStore]:
    """An empty store on every storage in turn."""
    backend, _, version = request.param.partition("-")
    if backend == "memory":
        made = EventStore(use_memory=True)
    else:
        made = EventStore(storage=PostgresStorage(databases(version).clear()))
    async with made:
        yield made


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
