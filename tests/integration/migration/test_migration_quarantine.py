"""Quarantine: no bad record stops a run, none disappears, and after a fix only those run again."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from eventsourcing import EventStore
from eventsourcing.events import EventType
from eventsourcing.quarantine import quarantined
from pipelines.migration import MigrationError, Progress, RunStoppedError, parse_mapping
from pipelines.migration.legacy_panel import mapping_path
from tests.integration.migration.lab import USERS, Lab, all_events

FIXED = (
    mapping_path()
    .read_text()
    .replace("rows: 1000", "rows: 60")
    .replace(
        "note: {from: note, rules: [{max_length: 500}]}", "note: {from: note, transform: [{const: null}]}"
    )
    .replace("on_missing: quarantine", "on_missing: 'null'")
)
"""Long notes are dropped, and orphans have no owner: two classes of defect are mended."""


async def in_quarantine(store: EventStore, migration_id: str = "migration-1") -> list[dict[str, Any]]:
    return (await quarantined(store, migration_id, limit=1000)).rows


async def test_after_a_fix_only_the_quarantined_records_run_again(lab: Lab) -> None:
    async with EventStore(use_memory=True) as store:
        await lab.migration(store).run()
        before, users, known = await in_quarantine(store), lab.rows("users"), lab.dump()
        outcome = await lab.migration(store, mapping=parse_mapping(FIXED)).retry()
        after = await in_quarantine(store)
        stages = await store.get_events("migration-1:attempt-2")
        released = await store.get_events_by_type(EventType.RECORD_RELEASED)
        migrated = await store.get_events_by_type(EventType.USER_MIGRATED)
        verified = await lab.migration(store, mapping=parse_mapping(FIXED)).verify()
        undone = await lab.migration(store, mapping=parse_mapping(FIXED)).rollback("all of it")
    mended = {(row["entity"], row["source_key"]) for row in before} - {
        (row["entity"], row["source_key"]) for row in after
    }
    rules = Counter(row["rule"] for row in before if (row["entity"], row["source_key"]) in mended)
    assert set(rules) == {"max_length", "reference", "parent"}
    assert {row["attempt"] for row in before} == {1}
    assert {row["attempt"] for row in after} == {2}
    assert len(released) == len(mended) == len(before) - len(after)
    assert {event.data["outcome"] for event in released} == {"migrated"}
    assert len(migrated) == users + len(mended)
    assert stages[0].data["mapping_sha256"] != stages[0].data["previous_mapping_sha256"]
    assert stages[1].data["record_count"] == len(before)
    totals = outcome.facts["statistics"]["entities"]["users"]
    assert totals["in"] == USERS
    assert totals["quarantined"] == sum(row["entity"] == "users" for row in after)
    assert totals["inserted"] == users + len(mended)
    assert known != lab.dump()
    assert verified.facts["ok"], verified.facts
    assert undone.facts["deleted"]["users"] == users + len(mended)
    assert lab.rows("users") == lab.rows("admins") == 0


async def test_a_retry_without_a_fix_sets_the_same_records_aside_again(lab: Lab) -> None:
    async with EventStore(use_memory=True) as store:
        await lab.migration(store).run()
        before, dump = await in_quarantine(store), lab.dump()
        await lab.migration(store).retry()
        after = await in_quarantine(store)
        await lab.migration(store).retry()
        third = await in_quarantine(store)
    places = [
        {(row["entity"], row["source_key"], row["rule"], row["column"], row["message"]) for row in rows}
        for rows in (before, after, third)
    ]
    # A user whose owner is in quarantine, and two that share a name, are what they were.
    assert places[0] == places[1] == places[2]
    assert {row["attempt"] for row in third} == {3}
    assert lab.dump() == dump


async def test_a_retry_that_died_goes_on(lab: Lab) -> None:
    def crash(progress: Progress) -> None:
        if progress.stage == "load":
            raise RuntimeError("the process dies here")

    async with EventStore(use_memory=True) as store:
        await lab.migration(store).run()
        fixed = parse_mapping(FIXED)
        with pytest.raises(RuntimeError):
            await lab.migration(store, mapping=fixed, on_progress=crash).retry()
        with pytest.raises(MigrationError, match="another mapping"):
            await lab.migration(store).run()
        await lab.migration(store, mapping=fixed).run()
        stages = await store.get_events("migration-1:attempt-2")
        assert (await lab.migration(store, mapping=fixed).verify()).facts["ok"]
    assert Counter(event.event_type for event in stages).most_common(1)[0][1] == 1


async def test_there_is_nothing_to_retry_in_a_run_that_is_not_completed(lab: Lab) -> None:
    async with EventStore(use_memory=True) as store:
        with pytest.raises(MigrationError):
            await lab.migration(store).retry()
        await lab.migration(store).start()
        with pytest.raises(MigrationError, match="running, not completed"):
            await lab.migration(store).retry()


async def test_rows_that_the_target_refuses_are_found_by_halving_and_set_aside(lab: Lab) -> None:
    lab.execute("ALTER TABLE users ADD CONSTRAINT nobody CHECK (id NOT IN (7, 50, 51, 177))")
    async with EventStore(use_memory=True) as store:
        outcome = await lab.migration(store).run()
        rows = await in_quarantine(store)
        told = {event.aggregate_id for event in await store.get_events_by_type(EventType.USER_MIGRATED)}
        verified = await lab.migration(store).verify()
    refused = [row for row in rows if row["stage"] == "load"]
    assert {row["source_key"] for row in refused} <= {"7", "50", "51", "177"}
    assert len(refused) >= 3
    assert {(row["rule"], row["message"]) for row in refused} == {("check", "breaks a constraint (nobody)")}
    assert told.isdisjoint({f"user-{row['source_key']}" for row in refused})
    assert len(told) == lab.rows("users")
    assert verified.facts["ok"]
    totals = outcome.facts["statistics"]["entities"]["users"]
    assert totals["quarantined"] == sum(row["entity"] == "users" for row in rows)


async def test_a_target_that_refuses_everything_stops_the_run_and_it_goes_on_later(lab: Lab) -> None:
    lab.execute("ALTER TABLE users ADD CONSTRAINT nobody CHECK (id < 0)")
    async with EventStore(use_memory=True) as store:
        with pytest.raises(MigrationError, match="refused a row"):
            await lab.migration(store).run()
        assert lab.rows("users") == 0
        assert not [row for row in await in_quarantine(store) if row["stage"] == "load"]
        lab.execute("ALTER TABLE users DROP CONSTRAINT nobody")
        await lab.migration(store).run()
        assert (await lab.migration(store).verify()).facts["ok"]


async def test_a_stopped_run_lets_go_of_the_target_and_goes_on_as_if_never_stopped(lab: Lab) -> None:
    async with EventStore(use_memory=True) as store:
        migration = lab.migration(store)

        def stop_in_the_middle(progress: Progress) -> None:
            if progress.stage == "load" and progress.entity == "users":
                stopping.stop()

        stopping = lab.migration(store, on_progress=stop_in_the_middle)
        with pytest.raises(RunStoppedError):
            await stopping.run()
        half = lab.rows("users")
        [(status, lease)] = lab.execute("SELECT status, lease_until FROM mig_run")
        failures = await store.get_events_by_type(EventType.MIGRATION_FAILED)
        await migration.run()
        last = (await all_events(store))[-1]
    assert 0 < half < lab.rows("users"), "the chunk that was under way was finished, and no other"
    assert (status, lease) == ("cancelled", None)
    assert failures == []
    assert last.event_type is EventType.MIGRATION_COMPLETED
