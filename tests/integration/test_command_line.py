"""The command line as its user meets it: one clear line for bad input, a clean start, a clean stop."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from eventsourcing.testing import a_migration
from pipelines.migration.legacy_panel import create_target_schema, generate_legacy_panel, mapping_path
from tests import terminal
from tests.terminal import ESM, refused
from tests.waiting import blocked_until

Esm = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def environment(database_url: str, tmp_path: Path) -> dict[str, str]:
    """A data directory and an event database of the test's own."""
    return {
        **os.environ,
        "ESM_DATA_DIR": str(tmp_path / "data"),
        "DATABASE_URL": database_url,
        "COLUMNS": "200",
    }


@pytest.fixture
def esm(environment: dict[str, str]) -> Esm:
    """Run `esm` to its end."""

    def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return terminal.esm(*arguments, settings={**environment, **changes})

    return run


@pytest.fixture
def panel(tmp_path: Path) -> Path:
    """A small legacy panel."""
    path = tmp_path / "legacy.db"
    generate_legacy_panel(path, users=200)
    return path


def test_a_migration_runs_from_the_terminal_and_its_events_are_listed(
    esm: Esm, panel: Path, new_database: Callable[[], str]
) -> None:
    target = new_database()
    create_target_schema(target)

    done = esm(
        "migrate", "run", str(mapping_path()), "--source", str(panel), "--target", target, "--id", "m-1"
    )
    listed = esm("events", "list", "--aggregate", "m-1", "--json")

    assert done.returncode == 0, done.stderr
    types = [json.loads(line)["event_type"] for line in listed.stdout.splitlines()]
    assert types == [str(e.event_type) for e in a_migration() if e.aggregate_id == "migration-123"]


def test_a_migration_is_undone_from_the_terminal(
    esm: Esm, panel: Path, new_database: Callable[[], str]
) -> None:
    target = new_database()
    create_target_schema(target)
    both = (str(mapping_path()), "--source", str(panel), "--target", target, "--id", "m-1")
    assert esm("migrate", "run", *both).returncode == 0

    undone = esm("migrate", "rollback", *both, "--reason", "trial")
    again = esm("migrate", "run", *both[:-1], "m-2")

    assert undone.returncode == 0, undone.stderr
    assert "deleted from users" in undone.stdout
    assert again.returncode == 0, again.stderr


def test_the_schema_is_created_and_named_and_creating_it_again_changes_nothing(esm: Esm) -> None:
    first, second = esm("db", "upgrade"), esm("db", "upgrade")

    assert first.returncode == second.returncode == 0, first.stderr
    assert re.search(r"schema version \d{4}\.", first.stdout)
    assert second.stdout == first.stdout


def test_a_target_with_rows_is_refused_before_anything_is_written(
    esm: Esm, panel: Path, new_database: Callable[[], str]
) -> None:
    target = new_database()
    create_target_schema(target)
    run = ("migrate", "run", str(mapping_path()), "--source", str(panel), "--target", target)
    assert esm(*run).returncode == 0

    line = refused(esm(*run, "--id", "again"))

    assert "is not empty" in line
    assert esm("events", "list", "--aggregate", "again", "--json").stdout == ""


def test_a_source_that_is_not_there_is_refused_and_not_created(
    esm: Esm, tmp_path: Path, new_database: Callable[[], str]
) -> None:
    missing = tmp_path / "missing.db"
    target = new_database()
    create_target_schema(target)
    run = ("migrate", "run", str(mapping_path()), "--target", target)

    assert "missing.db" in refused(esm(*run, "--source", str(missing)))
    assert "missing.db" in refused(esm(*run, "--source", f"sqlite:///{missing}"))
    assert not missing.exists()


def test_an_unknown_column_in_a_mapping_is_named_with_its_line(
    esm: Esm, panel: Path, tmp_path: Path, new_database: Callable[[], str]
) -> None:
    target = new_database()
    create_target_schema(target)
    text = mapping_path().read_text("utf-8")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text.replace("from: username", "from: user_nmae", 1), "utf-8")

    line = refused(esm("migrate", "run", str(wrong), "--source", str(panel), "--target", target))

    assert "user_nmae" in line
    assert "wrong.yaml:" in line


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"ESM_DATA_DIRECTORY": "x"}, "ESM_DATA_DIRECTORY"),
        ({"ESM_POOL_SIZE": "many"}, "ESM_POOL_SIZE"),
        ({"ESM_BIND_HOST": "0.0.0.0"}, "ESM_ALLOW_INSECURE_BIND"),
        ({"ESM_PLUGINS": "no_such_module"}, "no_such_module"),
        ({"DATABASE_URL": "postgresql+asyncpg://u:hunter2@127.0.0.1:1/x"}, "not available"),
        ({"DATABASE_URL": "nonsense"}, "DATABASE_URL"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(esm: Esm, changes: dict[str, str], named: str) -> None:
    line = refused(esm("events", "list", **changes))

    assert named in line
    assert "hunter2" not in line


def test_a_data_directory_that_cannot_be_used_is_one_line(
    tmp_path: Path, esm: Esm, environment: dict[str, str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    del environment["DATABASE_URL"]

    assert "data directory" in refused(esm("events", "list", ESM_DATA_DIR=str(file / "data")))


def test_a_port_in_use_is_one_line_that_names_it_and_nothing_is_left_running(
    esm: Esm, tmp_path: Path
) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]

        line = refused(esm("up", ESM_EVENT_SERVICE_PORT=str(port)))

    assert str(port) in line
    assert "ESM_EVENT_SERVICE_PORT" in line
    assert not (tmp_path / "data" / "supervisor").exists()


def test_a_source_that_is_no_database_is_refused(
    esm: Esm, tmp_path: Path, new_database: Callable[[], str]
) -> None:
    text = tmp_path / "notes.db"
    text.write_text("not a database", "utf-8")
    target = new_database()
    create_target_schema(target)

    assert "notes.db" in refused(
        esm("migrate", "run", str(mapping_path()), "--source", str(text), "--target", target)
    )
    assert text.read_text("utf-8") == "not a database"


@pytest.fixture
def ports() -> dict[str, str]:
    """Three free ports, as settings."""
    sockets = [socket.socket() for _ in range(3)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    numbers = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    names = ("ESM_EVENT_SERVICE_PORT", "ESM_REPLAY_SERVICE_PORT", "ESM_DAGSTER_PORT")
    return dict(zip(names, numbers, strict=True))


@pytest.fixture
def up(environment: dict[str, str], ports: dict[str, str], tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`esm up`, ready."""
    with (tmp_path / "up.log").open("w") as log:
        process = subprocess.Popen(
            [*ESM, "up"],
            env={**environment, **ports},
            stdout=log,
            stderr=log,
            text=True,
        )
        yield process
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def runs(process: psutil.Process) -> bool:
    """Whether a process is alive; one that nobody reaped yet is not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def healthy(port: str) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/readyz", timeout=2).status_code == 200
    except httpx2.HTTPError:
        return False


def test_everything_comes_up_survives_a_kill_and_stops_at_sigterm(
    up: subprocess.Popen[str], ports: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "up.log"
    blocked_until(lambda: "Ready." in log.read_text())
    below = psutil.Process(up.pid).children(recursive=True)
    service = next(child for child in below if "api.event_service" in " ".join(child.cmdline()))

    service.kill()
    blocked_until(lambda: not runs(service))
    blocked_until(lambda: healthy(ports["ESM_EVENT_SERVICE_PORT"]))
    up.send_signal(signal.SIGTERM)

    assert up.wait(60) == 0, log.read_text()
    assert "Stopped." in log.read_text()
    assert not [child for child in below if runs(child)]
