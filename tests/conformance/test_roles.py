"""The roles of the event store: each can do its part, and nothing more (G2)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from eventsourcing import NO_STREAM, ConfigurationError, EventStore
from eventsourcing.storage import upgrades
from eventsourcing.storage.base import CHECKPOINTS
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.storage.postgres_append import COPY_FROM
from tests.factories import draft, drafts

StoreOf = Callable[[str], Awaitable[EventStore]]

CHANGES = [
    "UPDATE events SET data = '{}'",
    "DELETE FROM events",
    "TRUNCATE events",
    "ALTER TABLE events DISABLE TRIGGER ALL",
    "ALTER TABLE events DISABLE TRIGGER events_refuse_change",
    "DROP TRIGGER events_refuse_change ON events",
    "DROP TABLE events",
    "SET session_replication_role = replica",
    "SELECT setval('event_positions', 1)",
    "ALTER SEQUENCE event_positions RESTART",
    "CREATE OR REPLACE FUNCTION events_refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RETURN NULL; END $$",
    "SELECT grant_event_store_rights()",
]


@pytest.fixture
async def store_of(
    postgres: EventStore, administrator: asyncpg.Connection, database_url: str
) -> AsyncIterator[StoreOf]:
    """Open the store as a new user with one of the roles."""
    users: list[str] = []
    stores: list[EventStore] = []

    async def as_user_of(role: str) -> EventStore:
        users.append(f"user_{uuid4().hex}")
        await administrator.execute(f"CREATE ROLE {users[-1]} LOGIN IN ROLE {role}")
        url = make_url(database_url).set(username=users[-1]).render_as_string(hide_password=False)
        stores.append(EventStore(storage=PostgresStorage(url, pool_size=2)))
        await stores[-1].initialize()
        return stores[-1]

    yield as_user_of
    for store in stores:
        await store.close()
    for user in users:
        await administrator.execute(f"DROP OWNED BY {user}; DROP ROLE {user}")


async def connection_of(store: EventStore) -> asyncpg.Connection:
    """A plain connection of the same user."""
    assert isinstance(store.storage, PostgresStorage)
    return await asyncpg.connect(
        store.storage._url.set(drivername="postgresql").render_as_string(hide_password=False)
    )


async def test_the_writer_appends_reads_and_keeps_states(store_of: StoreOf) -> None:
    store = await store_of("esm_writer")
    for size in (1, 3, COPY_FROM):
        batch = drafts(size, f"stream-{size}")
        stored = await store.append_events(batch, expected_version=NO_STREAM)
        assert await store.append_events(batch) == stored
        assert await store.get_events(f"stream-{size}") == stored
    assert await store.storage.horizon() == await store.storage.head()
    assert await store.storage.wait(0, timeout_s=1)
    assert (await store.get_event_stats())["total_events"] == 4 + COPY_FROM
    async with store.storage.lease("anything") as ours:
        assert ours


@pytest.mark.parametrize("role", ["esm_writer", "esm_relay", "esm_reader"])
async def test_nobody_changes_events_or_what_guards_them(
    store_of: StoreOf, postgres: EventStore, role: str, subtests: pytest.Subtests
) -> None:
    stored = await postgres.append_event(draft())
    connection = await connection_of(await store_of(role))
    for change in CHANGES:
        with subtests.test(change), pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(change)
    connection.terminate()
    assert await postgres.get_events("order-1") == [stored]


@pytest.mark.parametrize("role", ["esm_relay", "esm_reader"])
async def test_who_does_not_write_reads_everything_and_appends_nothing(
    store_of: StoreOf, postgres: EventStore, role: str
) -> None:
    stored = await postgres.append_event(draft())
    store = await store_of(role)
    piece = await anext(store.follow())
    assert (piece.events, piece.position) == ([stored], stored.position)
    for size in (1, 3, COPY_FROM):
        with pytest.raises(ConfigurationError, match=r"docs/guides/roles\.md"):
            await store.append_events(drafts(size, "other"))
    assert await postgres.get_events("other") == []


async def test_the_relay_keeps_its_checkpoint_and_the_reader_keeps_nothing(store_of: StoreOf) -> None:
    relay, reader = await store_of("esm_relay"), await store_of("esm_reader")

    async def put(store: EventStore) -> None:
        async with store.storage.transaction() as transaction:
            await transaction.put(CHECKPOINTS, "relay", {"position": 0})

    await put(relay)
    with pytest.raises(ConfigurationError):
        await put(reader)
    async with reader.storage.transaction() as transaction:
        assert await transaction.get(CHECKPOINTS, "relay") == {"position": 0}


async def test_whoever_may_read_sees_the_age_of_another_users_append(
    store_of: StoreOf, administrator: asyncpg.Connection
) -> None:
    reader = await store_of("esm_reader")
    assert await reader.storage.oldest_append_s() == 0
    async with administrator.transaction():
        await administrator.execute("SELECT hold_horizon()")
        await administrator.execute("SELECT pg_sleep(0.01)")
        assert await reader.storage.oldest_append_s() >= 0.01
    assert await reader.storage.oldest_append_s() == 0


async def test_an_owner_who_may_create_no_roles_is_told_which_are_missing(
    administrator: asyncpg.Connection, database_url: str
) -> None:
    owner = f"owner_{uuid4().hex}"
    renamed = {role: f"{role}_{uuid4().hex}" for role in ("esm_reader", "esm_relay", "esm_writer")}
    await administrator.execute(f"CREATE ROLE {owner} LOGIN; GRANT CREATE, USAGE ON SCHEMA public TO {owner}")
    for role, other in renamed.items():
        with suppress(asyncpg.UndefinedObjectError):  # no store was made on this server yet
            await administrator.execute(f"ALTER ROLE {role} RENAME TO {other}")
    try:
        url = make_url(database_url).set(username=owner).render_as_string(hide_password=False)
        await upgrades.upgrade(url)
        assert await upgrades.grant_rights(url) == sorted(renamed)
        async with EventStore(storage=PostgresStorage(url)) as store:
            assert (await store.append_event(draft())).event_version == 1
    finally:
        for role, other in renamed.items():
            try:
                await administrator.execute(f"ALTER ROLE {other} RENAME TO {role}")
            except asyncpg.UndefinedObjectError:
                await administrator.execute(f"CREATE ROLE {role} NOLOGIN")
    assert await upgrades.grant_rights(url) == [], "once they exist, their rights are granted"
    await administrator.execute(f"DROP OWNED BY {owner}; DROP ROLE {owner}")
