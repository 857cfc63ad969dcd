"""Rollback: exactly what was inserted goes; what others changed since stays, and is reported."""

from __future__ import annotations

import pytest

from eventsourcing import EventStore
from eventsourcing.events import EventType
from pipelines.migration import MigrationError, Progress
from pipelines.migration.legacy_panel import TARGET_TABLES
from tests.integration.migration.lab import Lab, all_events


async def test_a_rollback_empties_the_target_and_tells_every_record(lab: Lab) -> None:
    async with EventStore(use_memory=True) as store:
        migration = lab.migration(store)
        await migration.run()
        [(user,)] = lab.execute("SELECT min(id) FROM users")
        users, admins = lab.rows("users"), lab.rows("admins")
        undone = await migration.rollback("a rehearsal")
        initiated, completed = await store.get_events("migration-1:rollback-1")
        record = await store.get_events(f"user-{user}")
        stats = await store.get_event_stats()
        correlated = {event.correlation_id for event in await all_events(store)}
        with pytest.raises(MigrationError, match="rolled back already"):
            await migration.rollback("again")
        with pytest.raises(MigrationError, match="take a new id"):
            await migration.run()
        await lab.migration(store, "migration-2").run()
        again = await store.get_events(f"user-{user}")
    assert undone.facts["deleted"]["users"] == users
    assert initiated.data["rollback_scope"]["rows"] == undone.facts["deleted"]
    assert completed.data["success"]
    assert completed.data["rollback_stats"]["conflicts"] == 0
    assert stats["events_by_type"]["user.rolled_back"] == users
    assert stats["events_by_type"]["admin.rolled_back"] == admins
    assert [event.event_type for event in record] == [EventType.USER_MIGRATED, EventType.USER_ROLLED_BACK]
    assert len(correlated) == 1
    assert len(again) == 3


async def test_what_others_changed_or_refer_to_is_left_alone(lab: Lab) -> None:
    async with EventStore(use_memory=True) as store:
        migration = lab.migration(store)
        await migration.run()
        ids = [
            key for (key,) in lab.execute("SELECT id FROM users WHERE admin_id IS NULL ORDER BY id LIMIT 3")
        ]
        changed, fostered, deleted = ids
        [(owned, owner)] = lab.execute(
            "SELECT id, admin_id FROM users WHERE admin_id IS NOT NULL ORDER BY id LIMIT 1"
        )
        lab.execute(f"UPDATE users SET sub_last_user_agent = 'a client' WHERE id = {changed}")
        lab.execute(f"UPDATE users SET note = 'of my own' WHERE id = {owned}")
        lab.execute(f"INSERT INTO proxies (user_id, type, settings) VALUES ({fostered}, 'VMess', '{{}}')")
        for table in TARGET_TABLES[2:]:
            lab.execute(f"DELETE FROM {table} WHERE user_id = {deleted}")
        lab.execute(f"DELETE FROM users WHERE id = {deleted}")
        first = (await migration.rollback("with conflicts")).facts
        left = [key for (key,) in lab.execute("SELECT id FROM users ORDER BY id")]
        admins = [key for (key,) in lab.execute("SELECT id FROM admins")]
        completed = (await store.get_events("migration-1:rollback-1"))[-1]
        for table in (*TARGET_TABLES[2:], "users"):
            lab.execute(f"DELETE FROM {table}")
        second = (await migration.rollback("the rest")).facts
    reasons = {(item["entity"], item["key"]): item["reason"] for item in first["conflicting"]}
    assert reasons[("users", str(changed))] == f"users {changed} was changed by others"
    assert reasons[("users", str(deleted))].endswith("was deleted by others")
    assert reasons[("users", str(fostered))].endswith("refers to it")
    assert reasons[("admins", str(owner))] == f"users {owned} refers to it"
    assert left == sorted([changed, fostered, owned])
    assert admins == [owner]
    assert first["residual_diff"] > 0
    assert not completed.data["success"]
    assert second["rollback_id"] == "migration-1:rollback-2"
    assert second["residual_diff"] == 0
    assert lab.rows("admins") == 0


async def test_a_rollback_of_half_a_run_and_of_none(lab: Lab) -> None:
    def crash(progress: Progress) -> None:
        if progress.stage == "load" and progress.entity == "users":
            raise RuntimeError("the process dies here")

    async with EventStore(use_memory=True) as store:
        with pytest.raises(RuntimeError):
            await lab.migration(store, on_progress=crash).run()
        assert lab.rows("users") > 0
        undone = await lab.migration(store).rollback("never mind")
        await lab.migration(store, "migration-2").start()
        nothing = await lab.migration(store, "migration-2").rollback("not this one either")
    assert lab.rows("users") == lab.rows("admins") == 0
    assert undone.facts["residual_diff"] == 0
    assert nothing.facts["deleted"] == {}


async def test_a_rollback_that_died_goes_on(lab: Lab) -> None:
    def crash(progress: Progress) -> None:
        if progress.stage == "rollback" and progress.entity == "users":
            raise RuntimeError("the process dies here")

    async with EventStore(use_memory=True) as store:
        await lab.migration(store).run()
        users = lab.rows("users")
        with pytest.raises(RuntimeError):
            await lab.migration(store, on_progress=crash).rollback("first try")
        assert 0 < lab.rows("users") < users
        undone = await lab.migration(store).rollback("second try")
        stats = await store.get_event_stats()
    assert undone.facts["deleted"]["users"] == users
    assert undone.facts["rollback_id"] == "migration-1:rollback-1"
    assert stats["events_by_type"]["user.rolled_back"] == users
    assert stats["events_by_type"]["rollback.completed"] == 1
