"""`esm migrate` as its user meets it: plan, run, stop, resume, prove, undo; one line for what is wrong."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from pipelines.migration.legacy_panel import create_target_schema, generate_legacy_panel, mapping_path
from tests.databases import execute
from tests.terminal import ESM, esm, refused


class Terminal:
    """The command line over one source, one target and one data directory."""

    def __init__(self, folder: Path, events: str, target: str) -> None:
        self.folder, self.target = folder, target
        self.environment = {
            **os.environ,
            "ESM_DATA_DIR": str(folder / "data"),
            "DATABASE_URL": events,
            "COLUMNS": "200",
        }
        self.source = folder / "legacy.db"
        self.mapping = folder / "mapping.yaml"

    def command(self, *arguments: str) -> list[str]:
        return [*ESM, "migrate", *arguments]

    def over(self, command: str, *more: str, mapping: Path | None = None) -> list[str]:
        """The arguments of a command that connects to both."""
        both = ("--source", str(self.source), "--target", self.target)
        return [command, str(mapping or self.mapping), *both, *more]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return esm("migrate", *arguments, settings=self.environment)

    def sql(self, statement: str) -> object:
        return next((row[0] for row in execute(self.target, statement)), None)


@pytest.fixture
def terminal(tmp_path: Path, database_url: str, new_database: Callable[[], str]) -> Terminal:
    made = Terminal(tmp_path, database_url, new_database())
    generate_legacy_panel(made.source, users=400)
    made.mapping.write_text(mapping_path().read_text().replace("rows: 1000", "rows: 100"))
    create_target_schema(made.target)
    return made


@pytest.fixture
def slow_terminal(terminal: Terminal) -> Terminal:
    """The same in so many chunks that a run can be interrupted on its way."""
    terminal.mapping.write_text(mapping_path().read_text().replace("rows: 1000", "rows: 20"))
    return terminal


def test_from_the_plan_to_an_empty_target(terminal: Terminal) -> None:
    planned = terminal.run(*terminal.over("plan"))
    assert planned.returncode == 0, planned.stderr
    assert "Nothing stands in its way" in planned.stdout
    assert terminal.sql("SELECT count(*) FROM pg_tables WHERE tablename LIKE 'mig%'") == 0
    facts = json.loads(terminal.run(*terminal.over("plan", "--json")).stdout)
    assert facts["entities"]["users"]["in"] == 400

    ran = terminal.run(*terminal.over("run", "--id", "m-1"))
    assert ran.returncode == 0, ran.stderr
    assert "load users" in ran.stdout
    assert "\x1b" not in ran.stdout, "plain lines into a file"
    assert terminal.run(*terminal.over("verify", "--id", "m-1")).returncode == 0

    listed = terminal.run("quarantine", "list", "--id", "m-1")
    for suffix in ("csv", "jsonl"):
        out = terminal.folder / f"out.{suffix}"
        assert terminal.run("quarantine", "export", str(out), "--id", "m-1").returncode == 0
    with (terminal.folder / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (terminal.folder / "out.jsonl").read_text().splitlines()]
    assert [row["source_key"] for row in rows] == [line["source_key"] for line in lines]
    assert len(rows) > 10
    assert f"In quarantine: {len(rows):,} records." in listed.stdout

    mended = terminal.folder / "mended.yaml"
    mended.write_text(terminal.mapping.read_text().replace("on_missing: quarantine", "on_missing: 'null'"))
    assert "another mapping" in refused(terminal.run(*terminal.over("verify", "--id", "m-1", mapping=mended)))
    retried = terminal.run("quarantine", *terminal.over("retry", "--id", "m-1", mapping=mended))
    assert retried.returncode == 0, retried.stderr

    page = terminal.folder / "report.html"
    reported = terminal.run("report", "--id", "m-1", "--html", str(page))
    assert reported.returncode == 0, reported.stderr
    assert "Proven" in reported.stdout
    assert page.read_text().startswith("<!doctype html>")

    terminal.sql("UPDATE users SET note = 'x' WHERE id = (SELECT max(id) FROM users)")
    differs = terminal.run(*terminal.over("verify", "--id", "m-1", mapping=mended))
    assert differs.returncode == 1
    assert "note" in differs.stdout
    assert terminal.run("report", "--id", "m-1").returncode == 1

    undone = terminal.run(*terminal.over("rollback", "--id", "m-1", "--force", mapping=mended))
    assert undone.returncode == 0, undone.stderr
    assert terminal.sql("SELECT count(*) FROM users") == 0


def started(terminal: Terminal, *arguments: str) -> subprocess.Popen[str]:
    """A run that is at its load."""
    process = subprocess.Popen(
        terminal.command(*arguments),
        env={**terminal.environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("validate users"):
            break
    return process


def test_ctrl_c_stops_in_order_and_leaves_a_run_that_goes_on(slow_terminal: Terminal) -> None:
    process = started(slow_terminal, *slow_terminal.over("run", "--id", "m-1"))
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert "it can be resumed" in out
    assert slow_terminal.sql("SELECT status FROM mig_run") == "cancelled"

    resumed = slow_terminal.run(*slow_terminal.over("resume", "--id", "m-1"))
    assert resumed.returncode == 0, resumed.stderr
    assert "nothing to resume" in refused(slow_terminal.run(*slow_terminal.over("resume", "--id", "m-1")))


def test_a_run_is_cancelled_from_another_terminal(slow_terminal: Terminal) -> None:
    process = started(slow_terminal, *slow_terminal.over("run", "--id", "m-1"))
    cancelled = slow_terminal.run("cancel", "--id", "m-1")
    out, _ = process.communicate(timeout=60)
    if process.returncode == 0:  # it was faster than the command that should stop it
        assert "cannot be cancelled" in cancelled.stderr or "is completed" in cancelled.stdout
        return
    assert cancelled.returncode == 0, cancelled.stderr
    assert "is cancelled" in cancelled.stdout
    assert out.strip().splitlines()[-1] == "esm: migration 'm-1' was stopped; it can be resumed"
    assert slow_terminal.run(*slow_terminal.over("run", "--id", "m-1")).returncode == 0


def test_who_holds_the_target_is_named_with_its_process(terminal: Terminal) -> None:
    with waiting_run(terminal) as (process, _):
        line = refused(terminal.run(*terminal.over("run", "--id", "m-2")))
        assert re.fullmatch(
            r"esm: migration 'm-1' holds the target: running since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC "
            rf"in process {process.pid} on {re.escape(socket.gethostname())}; wait for it, or cancel it",
            line,
        )
        line = refused(terminal.run(*terminal.over("run", "--id", "m-1")))
        assert "migration 'm-1' is running since" in line
        assert f"in process {process.pid} on" in line
    process.communicate(timeout=60)


def test_what_a_run_waits_for_is_told(terminal: Terminal) -> None:
    with waiting_run(terminal) as (process, waits):
        assert waits.startswith("load waits: the table 'users' is held by a client without a name (backend ")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out


@contextmanager
def waiting_run(terminal: Terminal) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A run of m-1 that waits for a table until the block ends, and the line in which it says so."""
    engine = create_engine(terminal.target.replace("+asyncpg", "+psycopg2"), poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text("LOCK TABLE users IN SHARE MODE"))
        process = started(terminal, *terminal.over("run", "--id", "m-1"))
        assert process.stdout is not None
        try:
            yield process, next(line for line in process.stdout if " waits: " in line)
        except BaseException:
            process.kill()
            raise


def test_ctrl_c_is_heard_while_a_lock_is_waited_for(terminal: Terminal) -> None:
    with waiting_run(terminal) as (process, _):
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=50)  # the lock is held on, and would be waited for for a minute
        assert process.returncode == 130, out
        assert "it can be resumed" in out
        assert terminal.sql("SELECT status FROM mig_run") == "cancelled"
    resumed = terminal.run(*terminal.over("resume", "--id", "m-1"))
    assert resumed.returncode == 0, resumed.stderr


def test_a_killed_run_is_taken_up_at_once(slow_terminal: Terminal) -> None:
    process = started(slow_terminal, *slow_terminal.over("run", "--id", "m-1"))
    process.kill()
    process.communicate()
    time.sleep(0.1)
    resumed = slow_terminal.run(*slow_terminal.over("resume", "--id", "m-1"))
    assert resumed.returncode == 0, resumed.stderr


def test_a_refused_rollback_leaves_a_completed_migration_completed(terminal: Terminal) -> None:
    assert terminal.run(*terminal.over("run", "--id", "m-1")).returncode == 0
    line = refused(terminal.run(*terminal.over("rollback", "--id", "m-1", "--to-stage", "nowhere")))
    assert "'nowhere' is no stage to go back to" in line
    assert "is completed; there is nothing to resume" in refused(
        terminal.run(*terminal.over("resume", "--id", "m-1"))
    )
    terminal.sql("UPDATE users SET note = 'x' WHERE id = (SELECT max(id) FROM users)")

    foreseen = terminal.run(*terminal.over("rollback", "--id", "m-1", "--dry-run"))
    assert foreseen.returncode == 0, foreseen.stderr
    users = int(str(terminal.sql("SELECT count(*) FROM users")))
    assert re.search(rf"users +│ +{users - 1} │ +1 │ +0 ", foreseen.stdout)

    parted = terminal.run(*terminal.over("rollback", "--id", "m-1"))
    assert parted.returncode == 1
    assert re.search(r"left as they are +│ +[1-9]", parted.stdout)
    assert re.search(r"│ users +│ \d+ +│ users \d+ was changed by others", parted.stdout)
    assert "by the same command with --force" in parted.stdout
    assert terminal.run(*terminal.over("rollback", "--id", "m-1", "--force")).returncode == 0
    assert "is rolled back; take a new id" in refused(terminal.run(*terminal.over("run", "--id", "m-1")))


@pytest.mark.parametrize(
    "command", [("verify",), ("rollback",), ("rollback", "--dry-run"), ("quarantine", "retry")]
)
def test_a_migration_that_the_target_does_not_hold_leaves_no_trace(
    terminal: Terminal, command: tuple[str, ...]
) -> None:
    group, rest = ((), command) if command[0] != "quarantine" else (command[:1], command[1:])
    line = refused(terminal.run(*group, *terminal.over(rest[0], *rest[1:], "--id", "nothing")))
    assert line == "esm: the target holds no migration 'nothing'"
    assert "no migration 'nothing'" in refused(terminal.run(*terminal.over("resume", "--id", "nothing")))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cancel", "--id", "nothing"], "no migration 'nothing'"),
        (["report", "--id", "nothing"], "no report of migration 'nothing'"),
        (["quarantine", "list", "--id", "nothing"], "no migration 'nothing'"),
        (["quarantine", "export", "x.xls", "--id", "nothing"], "ends in neither .csv nor .jsonl"),
    ],
)
def test_what_is_not_there_is_one_line(terminal: Terminal, arguments: list[str], said: str) -> None:
    assert said in refused(terminal.run(*arguments))


@pytest.mark.parametrize("command", ["plan", "run"])
def test_every_error_of_a_mapping_is_a_line(terminal: Terminal, command: str) -> None:
    wrong = terminal.folder / "wrong.yaml"
    text_of = terminal.mapping.read_text().replace("      is_sudo: {", "      is_sudoo: {")
    wrong.write_text(text_of.replace("{from: used_traffic}", "{from: used_trafic}"))
    done = terminal.run(*terminal.over(command, mapping=wrong))
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()
    assert said[0] == "esm: the mapping is wrong in 2 places:"
    assert said[1].startswith(
        "wrong.yaml:24: entities.admins.fields.is_sudoo: the table 'admins' has no colu"
    )
    assert said[2].endswith("the table 'users' has no column 'used_trafic'; did you mean 'used_traffic'?")


def test_a_name_that_is_no_connection_is_one_line(terminal: Terminal) -> None:
    mapping, source = str(terminal.mapping), str(terminal.source)
    line = refused(terminal.run("plan", mapping, "-s", source, "-t", "nowhere"))
    assert "no target 'nowhere'" in line
    line = refused(terminal.run("plan", mapping, "-s", "nobody.db", "-t", terminal.target))
    assert "no source file 'nobody.db'" in line
    secret = "postgresql+psycopg2://me:hunter2@127.0.0.1:1/x"
    assert "hunter2" not in refused(terminal.run("plan", mapping, "-s", source, "-t", secret))
