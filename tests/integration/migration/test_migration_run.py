"""A whole run: every planted defect is found, the accounting adds up, the events tell it all."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from uuid import UUID

import orjson
import pytest
import xxhash

from eventsourcing import EventStore
from eventsourcing.catalogue import MIGRATION_SEQUENCE
from eventsourcing.events import EventType
from pipelines.migration import ThresholdExceededError, UnknownRunError, parse_mapping
from pipelines.migration.legacy_panel import DEFECTS, found_defects, mapping_path
from tests.integration.migration.lab import USERS, Finished, Lab, Panel


def test_every_planted_defect_is_found_and_every_row_is_accounted_for(
    finished: Finished, panel: Panel
) -> None:
    stages = [event for event in finished.events if event.aggregate_id == "migration-1"]
    quarantined = [e.data for e in finished.events if e.event_type is EventType.RECORD_QUARANTINED]
    assert [event.event_type for event in stages] == list(MIGRATION_SEQUENCE)
    expected = {name: panel.expected[name] for name in DEFECTS}
    assert found_defects(stages[3].data["validation_errors"]) == expected
    assert Counter((data["entity"], data["rule"], data["column"]) for data in quarantined) == Counter(
        {DEFECTS[name]: count for name, count in expected.items()}
    )
    statistics = finished.outcome.facts["statistics"]
    users = statistics["entities"]["users"]
    broken = sum(expected.values()) - expected["bad_bcrypt"]
    assert users["in"] == USERS
    assert users["filtered"] == panel.expected["removed"]
    assert users["quarantined"] == broken
    assert users["inserted"] == USERS - broken - panel.expected["removed"] == finished.lab.rows("users")
    assert statistics["verification"]["ok"]


def test_every_event_belongs_to_the_run_and_names_its_cause(finished: Finished) -> None:
    by_id = {event.event_id: event for event in finished.events}
    types = Counter(event.event_type for event in finished.events)
    assert len({event.correlation_id for event in finished.events}) == 1
    for event in finished.events:
        assert event.metadata == {"dagster_run_id": "run-1", "operator": "ada"}
        if event.event_type is EventType.MIGRATION_STARTED:
            assert event.causation_id is None
        else:
            assert event.causation_id in by_id, event.event_type
    users = [event for event in finished.events if event.event_type is EventType.USER_MIGRATED]
    causes = {by_id[event.causation_id].event_type for event in users if event.causation_id}
    assert causes == {EventType.DATA_VALIDATED}
    assert types[EventType.USER_MIGRATED] == finished.lab.rows("users")
    assert types[EventType.ADMIN_MIGRATED] == finished.lab.rows("admins")


def test_the_target_holds_what_the_source_meant(finished: Finished, panel: Panel) -> None:
    with closing(sqlite3.connect(panel.path)) as source:
        keys = dict(source.execute("SELECT id, key FROM users"))
        hashes = dict(source.execute("SELECT username, hashed_password FROM admins"))
        joined = "SELECT u.id, a.username, u.note FROM users u LEFT JOIN admins a ON a.id = u.admin_id"
        people = {key: (owner, note) for key, owner, note in source.execute(joined)}
    for user_id, kind, settings in finished.lab.execute("SELECT user_id, type::text, settings FROM proxies"):
        digest = xxhash.xxh128(keys[user_id].encode())
        if kind in ("VMess", "VLESS"):
            assert settings["id"] == str(UUID(bytes=digest.digest()))
        else:
            assert settings["password"] == digest.hexdigest()
    carried = finished.lab.execute("SELECT username, hashed_password FROM admins")
    assert all(hashes[name] == found for name, found in carried)
    for key, owner, note in finished.lab.execute(joined):
        assert (owner, note) == people[key]


def test_usage_before_a_reset_and_old_links_arrive_with_their_users(finished: Finished, panel: Panel) -> None:
    """The rows hold nothing of the run itself: a run killed and resumed must come to the same bytes."""
    with closing(sqlite3.connect(panel.path)) as source:
        people = {
            key: (life - used, f"{seen}+00:00", f"/sub/{name}/{path}")
            for key, life, used, seen, name, path in source.execute(
                "SELECT id, lifetime_used_traffic, used_traffic, coalesce(online_at, created_at), username,"
                " key FROM users WHERE typeof(used_traffic) = 'integer'"
            )
        }
    arrived = [key for (key,) in finished.lab.execute("SELECT id FROM users")]
    logs = finished.lab.execute("SELECT user_id, used_traffic_at_reset, reset_at FROM user_usage_logs")
    told = sorted((key, used, moment.isoformat(" ", "microseconds")) for key, used, moment in logs)
    assert told == sorted((key, *people[key][:2]) for key in arrived if people[key][0] > 0)
    assert 0 < len(told) < len(arrived), "some were never reset"
    links = finished.lab.execute("SELECT user_id, path FROM subscription_redirects")
    assert sorted(links) == sorted((key, people[key][2]) for key in arrived)


def test_the_keys_go_on_where_the_migrated_ones_end(finished: Finished) -> None:
    [(highest,)] = finished.lab.execute("SELECT max(id) FROM users")
    [(drawn,)] = finished.lab.execute("SELECT nextval('users_id_seq')")
    assert drawn > highest


def test_no_secret_is_seen_in_any_event_or_left_on_disk(finished: Finished, panel: Panel) -> None:
    told = b"\n".join(orjson.dumps(event.model_dump(mode="json")) for event in finished.events)
    with closing(sqlite3.connect(panel.path)) as source:
        keys = [key for (key,) in source.execute("SELECT key FROM users")]
        secrets = [text for (text,) in source.execute("SELECT hashed_password FROM admins")]
    for key in keys:
        digest = xxhash.xxh128(key.encode())
        secrets += [key, str(UUID(bytes=digest.digest())), digest.hexdigest()]
    left = b"".join(path.read_bytes() for path in finished.lab.work_dir.rglob("*") if path.is_file())
    assert [secret for secret in secrets if secret.encode() in told] == []
    assert [secret for secret in secrets if secret.encode() in left] == []
    assert b"hmac-sha256:" in told


def test_progress_reaches_the_end_of_every_entity(finished: Finished) -> None:
    ends = {(item.stage, item.entity) for item in finished.progress if item.done == item.total}
    entities = {"admins", "users"}
    assert ends >= {
        (stage, name) for stage in ("extract", "transform", "validate", "load") for name in entities
    }
    assert ends >= {("verify", table) for table in (*entities, "proxies")}


async def test_staged_files_are_for_their_owner_only(lab: Lab) -> None:
    async with EventStore(use_memory=True) as store:
        migration = lab.migration(store)
        await migration.start()
        await migration.check_schema()
        await migration.extract()
    files = [path for path in lab.work_dir.rglob("*") if path.is_file()]
    assert len(files) > 2
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


async def test_stages_may_each_have_their_own_object_but_keep_their_order(lab: Lab) -> None:
    async with EventStore(use_memory=True) as store:
        with pytest.raises(UnknownRunError):
            await lab.migration(store).extract()
        for stage in (
            "start",
            "check_schema",
            "extract",
            "transform",
            "validate",
            "load",
            "verify",
            "complete",
        ):
            await getattr(lab.migration(store), stage)()
            await getattr(lab.migration(store), stage)()
        assert [event.event_type for event in await store.get_events("migration-1")] == list(
            MIGRATION_SEQUENCE
        )
        with pytest.raises(UnknownRunError):
            await lab.migration(store, "migration-2").verify()


async def test_too_many_broken_records_fail_the_run_before_anything_is_written(lab: Lab) -> None:
    strict = parse_mapping(mapping_path().read_text().replace("ratio: 0.1", "ratio: 0.01"))
    async with EventStore(use_memory=True) as store:
        with pytest.raises(ThresholdExceededError):
            await lab.migration(store, mapping=strict).run()
        last = (await store.get_events("migration-1"))[-1]
    assert last.event_type is EventType.MIGRATION_FAILED
    assert last.data["error_details"] == {
        "stage": "validate",
        "error": "ThresholdExceededError",
        "resumable": False,
    }
    assert lab.rows("users") == lab.rows("admins") == 0


async def test_a_wrong_row_in_the_target_fails_the_run(lab: Lab) -> None:
    async with EventStore(use_memory=True) as store:
        migration = lab.migration(store)
        for stage in ("start", "check_schema", "extract", "transform", "validate", "load"):
            await getattr(migration, stage)()
        lab.execute("UPDATE users SET note = 'x' WHERE id = (SELECT min(id) FROM users)")
        with pytest.raises(Exception, match=r"differs from what was migrated in 1 row\b"):
            await migration.run()
        last = (await store.get_events("migration-1"))[-1]
    assert last.event_type is EventType.MIGRATION_FAILED


DAMAGES = {
    "UPDATE users SET note = coalesce(note, '') || 'x' WHERE id = {first}": [("users", "changed")],
    "UPDATE proxies a SET settings = b.settings FROM proxies b WHERE a.id + b.id = 3 AND a.id <= 2": [
        ("proxies", "changed"),
        ("proxies", "changed"),
    ],
    "DELETE FROM proxies WHERE id = 3": [("proxies", "missing")],
    "INSERT INTO users (id, username, status, created_at) VALUES (9999, 'more', 'active', now())": [
        ("users", "extra")
    ],
}


async def test_verification_finds_and_names_every_damage(lab: Lab) -> None:
    expected: list[tuple[str, str]] = []
    async with EventStore(use_memory=True) as store:
        migration = lab.migration(store)
        await migration.run()
        [(first,)] = lab.execute("SELECT min(id) FROM users")
        assert (await migration.verify()).facts["ok"]
        for damage, found in DAMAGES.items():
            lab.execute(damage.format(first=first))
            expected += found
            report = (await migration.verify()).facts
            assert sorted((item["table"], item["kind"]) for item in report["differences"]) == sorted(expected)
            assert not report["ok"]
            assert report["accounting"]["users"]["balanced"] is (("users", "extra") not in expected)


async def test_two_runs_do_not_share_a_target(lab: Lab, new_lab: Callable[[], Lab]) -> None:
    async with EventStore(use_memory=True) as store:
        await lab.migration(store).start()
        with pytest.raises(Exception, match="'migration-1' holds the target"):
            await lab.migration(store, "migration-2").start()
        await new_lab().migration(store, "migration-3").start()
        await lab.migration(store).fail(RuntimeError("secret text"))
        await lab.migration(store, "migration-2").start()
        failed = (await store.get_events("migration-1"))[-1]
    assert failed.data["error_message"] == "RuntimeError"
