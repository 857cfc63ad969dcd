"""The schema: made in an empty database, once, and refused where it is another one."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from alembic.script import ScriptDirectory

from eventsourcing import ConfigurationError, EventStore, EventStoreConfig, SchemaError, UnavailableError
from eventsourcing.storage import schema, upgrades
from eventsourcing.storage.postgres import PostgresStorage
from tests.conformance.conftest import Connect
from tests.factories import draft


async def test_many_processes_may_make_the_schema_at_once(database_url: str) -> None:
    stores = [EventStore(storage=PostgresStorage(database_url, pool_size=2)) for _ in range(6)]
    try:
        stored = await asyncio.gather(*(store.append_event(draft()) for store in stores))
    finally:
        await asyncio.gather(*(store.close() for store in stores))
    assert sorted(event.event_version for event in stored) == [1, 2, 3, 4, 5, 6]


async def test_upgrading_makes_the_newest_schema_and_repeating_it_changes_nothing(database_url: str) -> None:
    assert await schema.schema_version(database_url) is None
    newest = schema.newest_version()
    assert ScriptDirectory(str(schema.MIGRATIONS)).get_current_head() == newest
    assert await asyncio.gather(*(upgrades.upgrade(database_url) for _ in range(3))) == [newest] * 3
    assert await schema.schema_version(database_url) == newest


async def test_the_server_is_of_the_version_that_the_tests_name(version: str, connect: Connect) -> None:
    connection = await connect()
    assert str(connection.get_server_version().major) == version


async def test_the_first_event_stands_at_position_one(database_url: str) -> None:
    async with EventStore(EventStoreConfig(database_url=database_url)) as store:
        assert (await store.append_event(draft())).position == 1


async def test_an_older_or_newer_schema_is_refused_with_the_command_to_run(
    postgres: EventStore, database_url: str, administrator: asyncpg.Connection
) -> None:
    await administrator.execute("UPDATE event_store_version SET version_num = '0000'")
    with pytest.raises(SchemaError, match="esm db upgrade"):
        await EventStore(storage=PostgresStorage(database_url)).initialize()


async def test_a_table_of_another_program_is_left_alone(database_url: str, connect: Connect) -> None:
    connection = await connect()
    await connection.execute("CREATE TABLE events (theirs integer)")
    with pytest.raises(SchemaError, match="another program"):
        await EventStore(storage=PostgresStorage(database_url)).initialize()
    assert await connection.fetch("SELECT theirs FROM events") == []


async def test_a_database_that_is_not_there_is_a_mistake_in_the_settings(database_url: str) -> None:
    with pytest.raises(ConfigurationError):
        await EventStore(storage=PostgresStorage(database_url.replace("shared", "nowhere"))).initialize()


async def test_a_server_that_is_not_there_is_unavailable_for_now() -> None:
    url = "postgresql+asyncpg://user:hunter2@127.0.0.1:1/db"
    with pytest.raises(UnavailableError) as caught:
        await EventStore(EventStoreConfig(database_url=url)).append_event(draft())
    assert caught.value.retryable
    assert "hunter2" not in str(caught.value)
