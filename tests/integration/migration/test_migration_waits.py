"""A target that somebody else has locked: who it is is told while a run waits, and when it gives up."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from eventsourcing import EventStore
from pipelines.migration import (
    MigrationError,
    Progress,
    RunStoppedError,
    TargetBusyError,
    TargetLockedError,
    parse_mapping,
    postgres,
    postgres_source,
    sqlite_target,
)
from pipelines.migration.legacy_panel import create_target_schema
from pipelines.migration.target import open_target
from tests.integration.migration.lab import Lab, Panel, small_chunks


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (postgres, "LOCK_WAIT_S"),
        (postgres_source, "LOCK_WAIT_S"),
        (sqlite_target, "BUSY_S"),
    ):
        monkeypatch.setattr(module, name, 3)


@contextmanager
def transaction_of(lab: Lab, name: str, *statements: str) -> Iterator[Callable[[], None]]:
    """Somebody's open transaction, under a name; what is yielded ends it early."""
    engine = sa.create_engine(
        lab.target_url.replace("+asyncpg", "+psycopg2"),
        connect_args={"application_name": name},
        poolclass=sa.NullPool,
    )
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
        yield connection.rollback


async def given_up(lab: Lab, store: EventStore, told: list[Progress] | None = None) -> str:
    """Run until it gives up; the error's message."""
    hook = told.append if told is not None else None
    with pytest.raises(TargetLockedError) as caught:
        await lab.migration(store, on_progress=hook).run()
    assert caught.value.retryable
    assert caught.value.resumable
    return str(caught.value)


WHO = r"'billing' \(backend \d+, user 'postgres', idle in transaction since \d\d:\d\d:\d\d UTC\)"


async def test_a_locked_table_is_named_with_who_holds_it_and_nothing_is_half_done(
    lab: Lab, new_lab: Callable[[], Lab]
) -> None:
    told: list[Progress] = []
    async with EventStore(use_memory=True) as store:
        with transaction_of(lab, "billing", "LOCK TABLE users IN SHARE MODE"):
            said = await given_up(lab, store, told)
        locked = rf"the table 'users' is held by {WHO}"
        assert re.fullmatch(rf"gave up after 3 s: {locked}; let it finish, or end it, and resume", said)
        waits = [progress for progress in told if progress.waits]
        assert {progress.stage for progress in waits} == {"load"}
        assert re.fullmatch(locked, waits[0].waits)
        assert lab.rows("users") == 0
        [_, *_, failed] = await store.get_events("migration-1")
        assert failed.event_type == "migration.failed"
        assert failed.data["error_details"]["resumable"]
        await lab.migration(store).run()
    async with EventStore(use_memory=True) as store:
        undisturbed = new_lab()
        await undisturbed.migration(store).run()
    assert lab.dump() == undisturbed.dump()


@pytest.mark.parametrize("locked", ["users", "mig_run"])
async def test_a_stop_is_heard_while_a_lock_is_waited_for(
    lab: Lab, new_lab: Callable[[], Lab], monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    """The lock is held until the run has ended, and the run would wait for an hour."""
    monkeypatch.setattr(postgres, "LOCK_WAIT_S", 3600)
    async with EventStore(use_memory=True) as store:
        if locked == "mig_run":
            await lab.migration(store).start()

        def hear(progress: Progress) -> None:
            if progress.waits:
                migration.stop()

        migration = lab.migration(store, on_progress=hear)
        mode = "SHARE MODE" if locked == "users" else "ACCESS EXCLUSIVE MODE"
        with transaction_of(lab, "billing", f"LOCK TABLE {locked} IN {mode}"):
            with pytest.raises(RunStoppedError, match="'migration-1' was stopped; it can be resumed"):
                await migration.run()
            assert lab.rows("users") == 0
        standing = {"users": "cancelled", "mig_run": "running"}  # a row that is locked cannot be told
        assert lab.execute("SELECT status FROM mig_run") == [(standing[locked],)]
        await lab.migration(store).run()
        assert "migration.failed" not in {event.event_type for event in await store.get_events("migration-1")}
    async with EventStore(use_memory=True) as store:
        undisturbed = new_lab()
        await undisturbed.migration(store).run()
    assert lab.dump() == undisturbed.dump()


async def test_the_row_of_another_transaction_is_named_by_its_table(lab: Lab) -> None:
    async with EventStore(use_memory=True) as store:
        with transaction_of(
            lab, "billing", "INSERT INTO admins (id, username, hashed_password) VALUES (1, 'x', 'x')"
        ):
            said = await given_up(lab, store)
    assert re.search(rf"a row of 'admins' is held by {WHO}", said)


async def test_a_wait_that_ends_in_time_is_told_and_is_no_failure(lab: Lab) -> None:
    told: list[Progress] = []
    async with EventStore(use_memory=True) as store:
        with transaction_of(lab, "billing", "LOCK TABLE users IN SHARE MODE") as end:

            def hear(progress: Progress) -> None:
                told.append(progress)
                if progress.waits:
                    threading.Timer(0.1, end).start()

            await lab.migration(store, on_progress=hear).run()
    waited = [bool(progress.waits) for progress in told]
    assert any(waited)
    assert not waited[-1]
    assert lab.rows("users") > 0


async def test_another_migration_that_writes_is_named_by_its_id(lab: Lab) -> None:
    other = open_target(lab.target_url, migration_id="migration-9")
    with other.transaction() as transaction:
        transaction.lock()
        async with EventStore(use_memory=True) as store:
            said = await given_up(lab, store)
    other.close()
    assert re.search(
        r"the target is held by migration 'migration-9' \(backend \d+, idle in transaction", said
    )


async def test_a_source_that_is_locked_names_who_holds_it(new_lab: Callable[[], Lab]) -> None:
    lab, there = new_lab(), new_lab()
    source = there.target_url.replace("+asyncpg", "+psycopg2")
    text = """\
version: 1
entities:
  admins:
    from: admins
    to: admins
    key: id
    natural_key: username
    fields: {username: {from: username}, hashed_password: {from: hashed_password}}
    ignore: [created_at, is_sudo, password_reset_at, telegram_id, discord_webhook, users_usage]
"""
    async with EventStore(use_memory=True) as store:
        lock = "LOCK TABLE admins IN ACCESS EXCLUSIVE MODE"
        with transaction_of(there, "billing", lock), pytest.raises(MigrationError) as caught:
            await lab.migration(store, mapping=parse_mapping(text), source_url=source).run()
    assert re.search(rf"cannot be read \(the table 'admins' is held by {WHO}\)", str(caught.value))


@pytest.fixture
def file_lab(panel: Panel, tmp_path: Path) -> Lab:
    """The panel's successor in a SQLite file."""
    file = tmp_path / "successor.db"
    sqlite3.connect(file).close()
    create_target_schema(f"sqlite:///{file}")
    return Lab(f"sqlite:///{panel.path}", f"sqlite:///{file}", tmp_path / "work", small_chunks())


HOLD = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('BEGIN IMMEDIATE'); print(); input()"


@pytest.fixture
def holding(file_lab: Lab) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes to the file until a line is given to it."""
    command = [sys.executable, "-c", HOLD, file_lab.target_url.removeprefix("sqlite:///")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who holds a lock on a file")
async def test_a_locked_file_is_named_with_the_process_that_holds_it(
    file_lab: Lab, holding: subprocess.Popen[bytes]
) -> None:
    told: list[Progress] = []
    async with EventStore(use_memory=True) as store:
        said = await given_up(file_lab, store, told)
        holder = rf"the file 'successor.db' is held by '[\w.]+' \(process {holding.pid}\)"
        assert re.fullmatch(rf"gave up after 3 s: {holder}; let it finish, or end it, and resume", said)
        assert re.fullmatch(holder, next(progress.waits for progress in told if progress.waits))
        assert file_lab.execute("SELECT count(*) FROM sqlite_master WHERE name LIKE 'mig%'") == [(0,)]
        holding.communicate(b"\n", timeout=30)
        await file_lab.migration(store).run()
    assert file_lab.rows("users") > 0


async def test_the_lease_of_another_run_says_since_when_and_until_when(lab: Lab) -> None:
    async with EventStore(use_memory=True) as store:
        await lab.migration(store).start()
        with pytest.raises(TargetBusyError) as caught:
            await lab.migration(store, "migration-2").start()
    assert re.fullmatch(
        r"migration 'migration-1' holds the target since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, and until "
        r"\d\d:\d\d:\d\d unless it goes on: wait for it, cancel it, or resume it to its end",
        str(caught.value),
    )
    assert 50 < (caught.value.until - caught.value.since).total_seconds() < 75
    assert caught.value.until.timestamp() > time.time()
