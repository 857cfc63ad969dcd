"""The horizon step by step: one append transaction stays open while others commit (G5)."""

from __future__ import annotations

from eventsourcing import EventStore
from eventsourcing.storage.statements import statements
from tests.conformance.conftest import Connect
from tests.conformance.history import judge
from tests.conformance.traffic import entry_of
from tests.factories import draft

INSERT = """
INSERT INTO events (event_id, event_type, aggregate_id, aggregate_type, event_version, "timestamp",
                    metadata, data)
VALUES (gen_random_uuid(), 'order.placed', $1, 'order', 1, now(), '{}', '{}') RETURNING position
"""
INSERT_AT = """
INSERT INTO events (event_id, event_type, aggregate_id, aggregate_type, event_version, "timestamp",
                    metadata, data, position)
VALUES (gen_random_uuid(), 'order.placed', $1, 'order', 1, now(), '{}', '{}', $2)
"""


async def positions(store: EventStore, after: int = 0) -> list[int]:
    """What a reader is shown beyond `after`."""
    return [event.position async for event in store.get_all_events(after_position=after)]


async def test_readers_stop_below_an_append_that_is_still_open(
    postgres: EventStore, connect: Connect
) -> None:
    slow = await connect()
    async with slow.transaction():
        held = await slow.fetchval(INSERT, "slow")
        later = await postgres.append_event(draft("quick"))
        assert held < later.position
        assert await postgres.horizon() < held
        assert await positions(postgres) == []
        assert await postgres.get_events("quick") == [later], "who asks for a stream sees what is committed"
    assert await positions(postgres) == [held, later.position]
    assert await postgres.horizon() == later.position


async def test_readers_pass_an_append_that_was_undone(postgres: EventStore, connect: Connect) -> None:
    slow = await connect()
    transaction = slow.transaction()
    await transaction.start()
    await slow.fetchval(INSERT, "slow")
    later = await postgres.append_event(draft("quick"))
    await transaction.rollback()
    assert await positions(postgres) == [later.position]


async def test_readers_pass_an_append_whose_connection_died(postgres: EventStore, connect: Connect) -> None:
    slow, administrator = await connect(), await connect()
    await slow.transaction().start()
    held = await slow.fetchval(INSERT, "slow")
    later = await postgres.append_event(draft("quick"))
    assert await postgres.horizon() < held
    await administrator.execute("SELECT pg_terminate_backend($1, 5000)", slow.get_server_pid())
    assert await postgres.horizon() == later.position


async def test_an_old_transaction_that_appends_nothing_holds_nobody_back(
    postgres: EventStore, connect: Connect
) -> None:
    idle = await connect()
    async with idle.transaction(isolation="repeatable_read"):
        await idle.fetchval("SELECT count(*) FROM events")
        await idle.execute("CREATE TEMPORARY TABLE writes_elsewhere (n integer)")
        stored = await postgres.append_event(draft())
        assert await postgres.horizon() == stored.position


async def test_other_advisory_locks_hold_nobody_back(postgres: EventStore, connect: Connect) -> None:
    other = await connect()
    async with other.transaction():
        await other.execute("SELECT pg_advisory_xact_lock_shared(1), pg_advisory_xact_lock_shared(1, 1)")
        async with postgres.storage.lease("anything") as ours:
            assert ours
            stored = await postgres.append_event(draft())
            assert await postgres.horizon() == stored.position


async def test_an_insert_after_a_savepoint_was_undone_is_guarded_again(
    postgres: EventStore, connect: Connect
) -> None:
    slow = await connect()
    async with slow.transaction():
        savepoint = slow.transaction()
        await savepoint.start()
        await slow.fetchval(INSERT, "undone")
        await savepoint.rollback()
        held = await slow.fetchval(INSERT, "slow")
        later = await postgres.append_event(draft("quick"))
        assert await postgres.horizon() < held
    assert await positions(postgres) == [held, later.position]


async def test_copy_is_guarded_like_an_insert(postgres: EventStore, connect: Connect) -> None:
    slow = await connect()
    columns = ["event_id", "event_type", "aggregate_id", "aggregate_type", "event_version", "timestamp"]
    rows = await slow.fetch("SELECT gen_random_uuid(), 'order.placed', 'slow', 'order', 1, now()")
    async with slow.transaction():
        await slow.copy_records_to_table(
            "events", records=[(*rows[0], "{}", "{}")], columns=[*columns, "metadata", "data"]
        )
        later = await postgres.append_event(draft("quick"))
        assert await postgres.horizon() < later.position
    assert len(await positions(postgres)) == 2


async def test_planted_without_the_lock_an_open_append_is_passed_and_lost(
    postgres: EventStore, connect: Connect
) -> None:
    slow = await connect()
    await slow.execute("DROP TRIGGER events_hold_horizon ON events")
    async with slow.transaction():
        held = await slow.fetchval(INSERT, "slow")
        later = await postgres.append_event(draft("quick"))
        shown = await positions(postgres)
    assert shown == [later.position]
    assert held not in await positions(postgres, shown[-1])


async def test_planted_a_position_drawn_ahead_of_the_lock_is_passed_and_lost(
    postgres: EventStore, connect: Connect
) -> None:
    slow = await connect()
    drawn = await slow.fetchval("SELECT nextval('event_positions')")
    later = await postgres.append_event(draft("quick"))
    shown = await positions(postgres)
    await slow.execute(INSERT_AT, "slow", drawn)
    assert shown == [later.position]
    assert drawn not in await positions(postgres, shown[-1])


async def test_planted_a_position_drawn_before_its_version_is_resolved_inverts_versions(
    postgres: EventStore, connect: Connect
) -> None:
    slow = await connect()
    drawn = await slow.fetchval("SELECT nextval('event_positions')")
    await postgres.append_event(draft("shared"))
    await slow.execute(INSERT_AT.replace("'order', 1", "'order', 2"), "shared", drawn)
    stored = [entry_of(event) for event in await postgres.get_events("shared")]
    assert judge(stored, set(), []).inverted == 1


async def test_planted_a_sequence_that_caches_gives_positions_that_were_passed(
    postgres: EventStore, connect: Connect
) -> None:
    slow, quick = await connect(), await connect()
    await slow.execute("ALTER SEQUENCE event_positions CACHE 20")
    await slow.fetchval(INSERT, "draws twenty")
    await quick.fetchval(INSERT, "quick")
    shown = await positions(postgres)
    drawn = await slow.fetchval(INSERT, "slow")
    assert len(shown) == 2
    assert drawn not in await positions(postgres, shown[-1])


async def test_planted_a_horizon_read_in_an_older_snapshot_loses_what_was_committed_between(
    postgres: EventStore, connect: Connect
) -> None:
    slow, reader = await connect(), await connect()
    transaction = slow.transaction()
    await transaction.start()
    held = await slow.fetchval(INSERT, "slow")
    later = await postgres.append_event(draft("quick"))
    async with reader.transaction(isolation="repeatable_read"):
        await reader.fetchval("SELECT count(*) FROM events")
        await transaction.commit()
        horizon = await reader.fetchval(statements("events")["horizon"])
        shown = await reader.fetch("SELECT position FROM events WHERE position <= $1", horizon)
    assert [row["position"] for row in shown] == [later.position]
    assert held not in await positions(postgres, horizon)
