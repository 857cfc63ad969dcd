"""The audit is only added to, over every storage and by every role."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from eventsourcing import EventStore, StateForbidsError, audit
from eventsourcing.audit import AUDIT
from eventsourcing.storage.base import APPEND_ONLY_KEPT
from eventsourcing.storage.memory import InMemoryStorage
from tests.conformance.test_roles import StoreOf, connection_of, store_of

__all__ = ["store_of"]

CHANGES = [
    "UPDATE states SET value = '{}' WHERE table_name = 'audit'",
    "UPDATE states SET table_name = 'elsewhere' WHERE table_name = 'audit'",
    "UPDATE states SET changed_at = '2000-01-01' WHERE table_name = 'audit'",
    "DELETE FROM states WHERE table_name = 'audit'",
    "INSERT INTO states SELECT * FROM states WHERE table_name = 'audit' "
    "ON CONFLICT (table_name, key) DO UPDATE SET value = '{}'",
    "TRUNCATE states",
]


async def an_act(store: EventStore) -> str:
    async with store.storage.transaction() as transaction:
        return await audit.begin(transaction, "discard", by="ann", what={"n": 1}, why="a test")


async def test_what_came_of_an_act_is_added_and_the_last_holds(store: EventStore) -> None:
    acts = [await an_act(store) for _ in range(5)]
    for count in range(7):
        async with store.storage.transaction() as transaction:
            await audit.complete(transaction, acts[1], {"count": count})
    entries = await audit.audit_entries(store.storage)
    assert [entry["id"] for entry in entries] == acts[::-1]
    assert [entry["outcome"] for entry in entries] == [None, None, None, {"count": 6}, None]
    for limit in (1, 2, 3):
        paged, before = [], None
        while page := await audit.audit_entries(store.storage, limit=limit, before=before):
            assert len(page) <= limit
            paged += page
            before = page[-1]["id"]
        assert paged == entries


async def test_no_row_is_set_again_or_removed(store: EventStore) -> None:
    entry = await an_act(store)
    before = await audit.audit_entries(store.storage)
    with pytest.raises(StateForbidsError):
        async with store.storage.transaction() as transaction:
            await transaction.put(AUDIT, entry, {"by": "nobody"})
    with pytest.raises(StateForbidsError):
        async with store.storage.transaction() as transaction:
            await transaction.put_many(AUDIT, {entry: {"by": "nobody"}})
    with pytest.raises(StateForbidsError):
        async with store.storage.transaction() as transaction:
            await transaction.delete(AUDIT, entry)
    with pytest.raises(StateForbidsError):
        async with store.storage.transaction() as transaction:
            await transaction.delete_many(AUDIT, [entry])
    with pytest.raises(StateForbidsError):
        async with store.storage.transaction() as transaction:
            await transaction.purge(AUDIT)
    assert await audit.audit_entries(store.storage) == before
    assert await audit.purge_audit(store.storage, older_than=timedelta(0)) == 0


async def test_rows_past_their_time_go_and_younger_ones_stay(store: EventStore) -> None:
    young = await an_act(store)
    for days in (1, 27, 28, 40, 400):
        await aged(store, days)
    assert await audit.purge_audit(store.storage, older_than=timedelta(days=90)) == 1
    assert await audit.purge_audit(store.storage, older_than=timedelta(days=1)) == 1, "28 days is too young"
    entries = await audit.audit_entries(store.storage)
    assert [entry["id"] for entry in entries][:1] == [young]
    assert len(entries) == 4


async def aged(store: EventStore, days: int) -> None:
    """Leave an entry that was written so many days ago."""
    then = datetime.now(UTC) - timedelta(days=days)
    key = audit.first_id_of(then)
    async with store.storage.transaction() as transaction:
        await transaction.add(AUDIT, key, {"id": key, "by": "ann", "outcome": None})
    if isinstance(store.storage, InMemoryStorage):
        store.storage._changed[AUDIT.name][key] = time.monotonic() - days * 86_400
        return
    connection = await connection_of(store)
    await connection.execute("ALTER TABLE states DISABLE TRIGGER USER")
    await connection.execute("UPDATE states SET changed_at = $1 WHERE key = $2", then, key)
    await connection.execute("ALTER TABLE states ENABLE ALWAYS TRIGGER states_audit_refuse_change")
    await connection.close()


@pytest.mark.parametrize("role", ["esm_writer", "esm_relay", "esm_reader"])
async def test_no_role_changes_what_the_audit_says(
    store_of: StoreOf, postgres: EventStore, role: str, subtests: pytest.Subtests
) -> None:
    await an_act(postgres)
    before = await audit.audit_entries(postgres.storage)
    connection = await connection_of(await store_of(role))
    refused = (asyncpg.RestrictViolationError, asyncpg.InsufficientPrivilegeError)
    guards = [
        "ALTER TABLE states DISABLE TRIGGER ALL",
        "DROP TRIGGER states_audit_refuse_change ON states",
        "CREATE OR REPLACE FUNCTION audit_refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RETURN NULL; END $$",
        "SET session_replication_role = replica",
    ]
    for change in [*CHANGES, *guards]:
        with subtests.test(change), pytest.raises(refused):
            await connection.execute(change)
    connection.terminate()
    assert await audit.audit_entries(postgres.storage) == before


async def test_the_writer_adds_to_the_audit(store_of: StoreOf, postgres: EventStore) -> None:
    writer = await store_of("esm_writer")
    entry = await an_act(writer)
    async with writer.storage.transaction() as transaction:
        await audit.complete(transaction, entry, "200")
    (told,) = await audit.audit_entries(postgres.storage)
    assert (told["id"], told["outcome"]) == (entry, "200")


@pytest.mark.parametrize("role", ["origin", "replica", "local"])
async def test_the_database_refuses_every_change_even_to_a_superuser(
    postgres: EventStore, administrator: asyncpg.Connection, role: str, subtests: pytest.Subtests
) -> None:
    await an_act(postgres)
    before = await audit.audit_entries(postgres.storage)
    await administrator.execute(f"SET session_replication_role = {role}")
    for change in CHANGES:
        with subtests.test(change), pytest.raises(asyncpg.RestrictViolationError):
            await administrator.execute(change)
    assert await audit.audit_entries(postgres.storage) == before


async def test_planted_without_the_trigger_the_writer_could_change_an_entry(
    store_of: StoreOf, postgres: EventStore, administrator: asyncpg.Connection
) -> None:
    await an_act(postgres)
    await administrator.execute("ALTER TABLE states DISABLE TRIGGER states_audit_refuse_change")
    connection = await connection_of(await store_of("esm_writer"))
    assert await connection.execute(CHANGES[0]) == "UPDATE 1"
    connection.terminate()


async def test_the_database_and_the_code_say_the_same_time(
    postgres: EventStore, administrator: asyncpg.Connection
) -> None:
    source = await administrator.fetchval("SELECT prosrc FROM pg_proc WHERE proname = 'audit_refuse_change'")
    assert f"interval '{APPEND_ONLY_KEPT.days} days'" in source


async def test_other_tables_are_changed_as_ever(postgres: EventStore) -> None:
    table = AUDIT.__class__("not-audit")
    async with postgres.storage.transaction() as transaction:
        await transaction.put(table, "a", 1)
        await transaction.put(table, "a", 2)
        await transaction.delete(table, "a")
        assert await transaction.get(table, "a") is None
