"""Bad input: one clear line, and nothing half-written: no file, no table, no event."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventsourcing import EventStore
from pipelines.migration import (
    MappingError,
    MigrationError,
    SchemaIncompatibleError,
    SourceError,
    TargetError,
    TargetNotEmptyError,
    WorkFolderError,
    load_mapping,
    parse_mapping,
)
from pipelines.migration.legacy_panel import generate_legacy_panel, mapping_path
from tests.integration.migration.lab import Lab


async def refused(lab: Lab, error: type[MigrationError], **changes: object) -> str:
    """Run, expect the error, and show that nothing was written; the message."""
    async with EventStore(use_memory=True) as store:
        with pytest.raises(error) as caught:
            await lab.migration(store, **changes).run()  # type: ignore[arg-type]  # bad on purpose
        assert (await store.get_event_stats())["total_events"] == 0
    assert not lab.work_dir.exists()
    message = str(caught.value)
    assert "\n" not in message or error is MappingError
    return message


async def test_a_source_that_is_not_there_is_not_made(lab: Lab, tmp_path: Path) -> None:
    missing = tmp_path / "none.db"
    message = await refused(lab, SourceError, source_url=f"sqlite:///{missing}")
    assert message == "the source file 'none.db' does not exist"
    assert not missing.exists()
    assert lab.execute("SELECT to_regclass('mig_run')") == [(None,)]


async def test_a_source_that_is_no_database(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text(
        "this is not a database, and long enough to be read as a header of one\n" * 9
    )
    message = await refused(lab, SourceError, source_url=f"sqlite:///{tmp_path / 'text.db'}")
    assert message == "the source 'text.db' cannot be read (DatabaseError)"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "username: {from: username, rules",
            "username: {from: nickname, rules",
            "mapping:22: entities.admins.f",
        ),
        ("      is_sudo: {from: is_sudo}", "      rank: {from: is_sudo}", "'admins' has no column 'rank'"),
        ("auth_algorithm: xxh128", "auth_algorithm: md5", "auth_algorithm must be xxh128 or plain"),
    ],
)
async def test_a_mapping_that_does_not_fit(lab: Lab, old: str, new: str, message: str) -> None:
    text = mapping_path().read_text()
    assert old in text
    assert message in await refused(lab, MappingError, mapping=parse_mapping(text.replace(old, new)))
    assert lab.execute("SELECT to_regclass('mig_run')") == [(None,)]


async def test_a_target_that_is_not_empty(lab: Lab) -> None:
    lab.execute("INSERT INTO admins (username, hashed_password) VALUES ('here', 'before')")
    message = await refused(lab, TargetNotEmptyError)
    assert message == "target table 'admins' is not empty (on_conflict: fail)"
    assert lab.execute("SELECT to_regclass('mig_run')") == [(None,)]
    assert lab.rows("admins") == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "postgresql://ada:hunter2@127.0.0.1:1/none",
            "the target database 'none' cannot be reached: no server answers, it does not exist, or it does "
            "not let this user in",
        ),
        ("mysql://127.0.0.1/none", "targets of kind 'mysql' are not supported in this version"),
        ("nonsense", "the target is not a database URL such as postgresql://…"),
    ],
)
async def test_a_target_that_cannot_be_used(lab: Lab, url: str, message: str) -> None:
    lab.target_url = url
    assert await refused(lab, TargetError) == message


async def test_schemas_that_do_not_fit_are_told_and_nothing_is_loaded(lab: Lab) -> None:
    text = mapping_path().read_text()
    bare = "created_at: {from: created_at, transform: [{datetime: {from: naive_utc, to: timestamptz}}]}"
    mapping = parse_mapping(text.replace(bare, "created_at: {from: created_at}"))
    async with EventStore(use_memory=True) as store:
        with pytest.raises(SchemaIncompatibleError) as caught:
            await lab.migration(store, mapping=mapping).run()
        [checked] = await store.get_events("migration-1:schema")
        types = [event.event_type for event in await store.get_events("migration-1")]
    assert len(caught.value.blockers) == 2
    assert not checked.data["compatibility_result"]["compatible"]
    assert types == ["migration.started", "migration.failed"]
    assert lab.rows("admins") == 0


async def test_a_run_goes_on_only_under_the_mapping_it_began_with(lab: Lab) -> None:
    async with EventStore(use_memory=True) as store:
        await lab.migration(store).start()
        with pytest.raises(MigrationError, match="began under another mapping"):
            await lab.migration(store, mapping=load_mapping(mapping_path())).extract()


async def test_a_target_that_changed_since_the_run_began_is_named_before_anything_is_loaded(lab: Lab) -> None:
    async with EventStore(use_memory=True) as store:
        await lab.migration(store).start()
        lab.execute("ALTER TABLE users RENAME note TO remark")
        lab.execute("ALTER TABLE users ALTER expire TYPE text")
        lab.execute("DROP TABLE subscription_redirects")
        with pytest.raises(TargetError) as caught:
            await lab.migration(store).run()
        assert str(caught.value) == (
            "the target changed since the run began: the table subscription_redirects is gone, "
            "users.expire is text and was integer, users.note is gone; put it back, and resume"
        )
        assert [event.event_type for event in await store.get_events("migration-1")][-1] == "migration.failed"
    assert lab.rows("admins") == 0


async def test_a_read_only_target_is_told_to_be_one(lab: Lab) -> None:
    lab.execute(
        f"ALTER DATABASE {lab.target_url.rpartition('/')[2].partition('?')[0]} "
        "SET default_transaction_read_only = on"
    )
    assert await refused(lab, TargetError) == (
        "the target refused a statement: it is read-only (SQLSTATE 25006)"
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 300 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], check=False
        ).returncode
    ):
        pytest.skip("a disk of its own can be mounted by root alone")
    yield folder
    subprocess.run(["umount", folder], check=True)


def grow(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)


def drafts(folder: Path) -> list[Path]:
    return [*folder.rglob("*.draft")]


async def test_a_full_disk_stops_the_run_which_goes_on_when_there_is_room(lab: Lab, small_disk: Path) -> None:
    lab.work_dir = small_disk
    (small_disk / "filler").write_bytes(bytes(250 << 10))
    async with EventStore(use_memory=True) as store:
        with pytest.raises(WorkFolderError) as caught:
            await lab.migration(store).run()
        assert str(caught.value) == (
            "the work folder cannot be written: no space left on device; make room, and resume"
        )
        assert drafts(small_disk) == []
        failed = (await store.get_events("migration-1"))[-1]
        assert failed.event_type == "migration.failed"
        assert failed.data["error_details"]["resumable"]
        with pytest.raises(WorkFolderError):
            await lab.migration(store, "migration-2").preview()
        (small_disk / "filler").unlink()
        grow(small_disk)
        await lab.migration(store).run()
    assert lab.rows("users") > 0


async def test_a_staged_file_that_was_touched_is_not_used(lab: Lab) -> None:
    async with EventStore(use_memory=True) as store:
        migration = lab.migration(store)
        await migration.start()
        await migration.check_schema()
        await migration.extract()
        file = next(lab.work_dir.rglob("extract/users/*.arrow"))
        file.write_bytes(file.read_bytes()[:-1] + b"x")
        with pytest.raises(MigrationError, match="is not what was written"):
            await migration.transform()


def test_a_legacy_panel_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "legacy.db"
    generate_legacy_panel(path, users=200)
    with pytest.raises(SourceError, match="exists already"):
        generate_legacy_panel(path, users=200)
