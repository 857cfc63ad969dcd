"""A data directory of an earlier version: its schema is upgraded on opening, and its events stay."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.pool import NullPool

from eventsourcing import EventQuery, EventStore
from eventsourcing.storage import schema, upgrades
from eventsourcing.storage.embedded import EVENT_DATABASE, EmbeddedPostgres, EmbeddedStorage
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


async def test_the_first_schema_becomes_the_newest_with_its_events(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    server.start()
    server.ensure_database(EVENT_DATABASE)
    engine = create_engine(server.url(EVENT_DATABASE, driver="psycopg2"), poolclass=NullPool)
    with engine.begin() as connection:
        make_first_schema(connection)
        connection.execute(text(OLD_EVENT))
    async with EventStore(storage=EmbeddedStorage(data_dir)) as store:
        await store.append_event(draft())
        seats = [event async for event in store.read(EventQuery(aggregate_types=("seat",)))]
        assert [(event.aggregate_id, event.data) for event in seats] == [("seat-1", {"by": "ann"})]
        assert await schema.schema_version(server.url(EVENT_DATABASE)) == schema.newest_version()
