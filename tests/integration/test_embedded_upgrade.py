"""A data directory of an earlier version: its schema is upgraded on opening, and its events stay."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.pool import NullPool

from eventsourcing import EventQuery, EventStore
from eventsourcing.config import Settings
from eventsourcing.storage import schema, upgrades
from eventsourcing.storage.embedded import EVENT_DATABASE, EmbeddedPostgres, EmbeddedStorage
from resources.dagster_home import prepare_dagster_home
from tests.factories import draft

OLD_EVENT = """
INSERT INTO events
    (event_id, event_type, aggregate_id, aggregate_type, event_version, "timestamp", metadata, data)
VALUES (gen_random_uuid(), 'seat.booked', 'seat-1', 'seat', 1, now(), '{}', '{"by": "ann"}')
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="esm-old-"))
    directory.chmod(0o755)  # the server may run as another user
    yield directory
    server = EmbeddedPostgres(directory)
    server.start()
    server.stop()
    shutil.rmtree(directory, ignore_errors=True)


def make_first_schema(connection: Connection) -> None:
    config = upgrades._config()
    config.attributes["connection"] = connection
    command.upgrade(config, "0001")


def old_server(data_dir: Path) -> EmbeddedPostgres:
    """A server whose event database has the first schema and one event."""
    server = EmbeddedPostgres(data_dir)
    server.start()
    server.ensure_database(EVENT_DATABASE)
    engine = create_engine(server.url(EVENT_DATABASE, driver="psycopg2"), poolclass=NullPool)
    with engine.begin() as connection:
        make_first_schema(connection)
        connection.execute(text(OLD_EVENT))
    return server


async def test_the_first_schema_becomes_the_newest_with_its_events(data_dir: Path) -> None:
    server = old_server(data_dir)
    async with EventStore(storage=EmbeddedStorage(data_dir)) as store:
        await store.append_event(draft())
        seats = [event async for event in store.read(EventQuery(aggregate_types=("seat",)))]
        assert [(event.aggregate_id, event.data) for event in seats] == [("seat-1", {"by": "ann"})]
        assert await schema.schema_version(server.url(EVENT_DATABASE)) == schema.newest_version()


def test_who_hands_the_address_to_other_processes_upgrades_it_before(data_dir: Path) -> None:
    """`esm up` and `esm demo`: whoever gets an address takes the server for somebody else's."""
    old_server(data_dir)
    url = prepare_dagster_home(Settings(data_dir=data_dir, database_url=None))["DATABASE_URL"]
    assert asyncio.run(schema.schema_version(url)) == schema.newest_version()
