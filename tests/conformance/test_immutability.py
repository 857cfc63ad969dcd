"""A stored event never changes (G2)."""

from __future__ import annotations

import asyncpg
import pytest
from pydantic import ValidationError

from eventsourcing import EventStore
from tests.factories import draft

CHANGES = [
    "UPDATE events SET data = '{}'",
    "UPDATE events SET event_type = event_type WHERE position < 0",
    "DELETE FROM events",
    "DELETE FROM events WHERE position < 0",
    "TRUNCATE events",
    "TRUNCATE events CASCADE",
    "INSERT INTO events SELECT * FROM events ON CONFLICT (event_id) DO UPDATE SET data = '{}'",
    "MERGE INTO events USING (SELECT 1) AS one ON true WHEN MATCHED THEN DELETE",
    "WITH gone AS (DELETE FROM events RETURNING *) SELECT count(*) FROM gone",
]


@pytest.mark.parametrize("role", ["origin", "replica", "local"])
async def test_the_database_refuses_every_change_even_to_a_superuser(
    postgres: EventStore, administrator: asyncpg.Connection, role: str, subtests: pytest.Subtests
) -> None:
    stored = await postgres.append_event(draft(data={"n": 1}))
    await administrator.execute(f"SET session_replication_role = {role}")
    for change in CHANGES:
        with subtests.test(change), pytest.raises(asyncpg.RestrictViolationError):
            await administrator.execute(change)
    assert await postgres.get_events("order-1") == [stored]


async def test_planted_without_always_a_replica_session_could_change_events(
    postgres: EventStore, administrator: asyncpg.Connection
) -> None:
    await postgres.append_event(draft(data={"n": 1}))
    await administrator.execute("ALTER TABLE events ENABLE TRIGGER events_refuse_change")
    await administrator.execute("SET session_replication_role = replica")
    await administrator.execute("UPDATE events SET data = '{}'")
    [changed] = await postgres.get_events("order-1")
    assert changed.data == {}


async def test_the_database_refuses_a_version_that_is_taken_or_no_version(
    postgres: EventStore, administrator: asyncpg.Connection
) -> None:
    await postgres.append_event(draft())
    copy = (
        "INSERT INTO events (event_id, event_type, aggregate_id, aggregate_type, event_version, "
        '"timestamp", metadata, data) SELECT gen_random_uuid(), event_type, aggregate_id, '
        'aggregate_type, event_version + $1, "timestamp", metadata, data FROM events'
    )
    with pytest.raises(asyncpg.UniqueViolationError):
        await administrator.execute(copy, 0)
    with pytest.raises(asyncpg.CheckViolationError):
        await administrator.execute(copy, -1)


async def test_what_the_store_returns_is_frozen(store: EventStore) -> None:
    stored = await store.append_event(draft())
    [read] = await store.get_events("order-1")
    for event in (stored, read):
        for field in ("event_type", "data", "timestamp", "position"):
            with pytest.raises(ValidationError):
                setattr(event, field, getattr(event, field))
        with pytest.raises(ValidationError):
            event.follow(stored)
