"""Measure a migration with one event a user against raw COPY of the same rows and the same events.

`python -m tests.benchmarks.migration --users 100000`. The migration runs in a process of its own, whose
peak memory is told; the baselines copy what it wrote into empty tables of the same form, on the same
server, in the same run. Where `pgloader` is installed it moves the same SQLite table, without events.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import sqlalchemy as sa
from rich.console import Console
from rich.table import Table

from eventsourcing import EventStore, EventStoreConfig
from eventsourcing.bootstrap import collect_rarely, return_buffers
from eventsourcing.storage.embedded import EmbeddedPostgres
from eventsourcing.storage.upgrades import upgrade
from pipelines.migration import Migration, Progress, parse_mapping
from tests.peak import peak_memory_mb

STAGES = ("extract", "transform", "validate", "load", "verify")
MAPPING = """\
version: 1
entities:
  users:
    from: users
    to: accounts
    key: id
    natural_key: username
    emit: USER_MIGRATED
    fields:
      id: {from: id}
      username: {from: username, transform: [lower], rules: [required, {max_length: 64}]}
      email: {from: email, rules: [{pattern: "^[^@]+@[^@]+$"}]}
      password_hash: {from: password_hash, rules: [{hash: bcrypt}], secret: true}
      is_active: {from: is_active}
      created_at: {from: created_at, transform: [{datetime: {from: naive_utc, to: timestamptz}}]}
      expires: {from: expires_at, transform: [{datetime: {from: naive_utc, to: unix_s}}]}
      used_bytes: {from: used_bytes}
      external_id: {from: external_id, transform: [{uuid: {from: hex32, to: dashed}}]}
      note: {from: note}
"""
SOURCE = """
CREATE TABLE users (id INTEGER PRIMARY KEY, username VARCHAR(64), email VARCHAR(255),
    password_hash VARCHAR(128), is_active BOOLEAN, created_at DATETIME, expires_at DATETIME,
    used_bytes BIGINT, external_id VARCHAR(32), note VARCHAR(500));
"""
TARGET = """
CREATE TABLE accounts (id bigint PRIMARY KEY, username varchar(64) NOT NULL UNIQUE, email varchar(255),
    password_hash varchar(128), is_active boolean, created_at timestamptz, expires bigint, used_bytes bigint,
    external_id uuid, note varchar(500));
"""
EVENT_COLUMNS = (
    'event_id, event_type, aggregate_id, aggregate_type, event_version, "timestamp", correlation_id,'
    " causation_id, metadata, data"
)
LETTERS = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def make_source(path: Path, users: int, seed: int = 1) -> None:
    """Made-up users, the same for the same seed."""
    chance = random.Random(seed)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(SOURCE)
        connection.executemany(
            "INSERT INTO users VALUES (?,?,?,?,?,?,?,?,?,?)",
            (
                (
                    number,
                    f"User{number:08d}",
                    f"user{number}@example.org",
                    "$2b$12$" + "".join(chance.choices(LETTERS, k=53)),
                    number % 20 != 0,
                    f"2025-{number % 12 + 1:02d}-{number % 28 + 1:02d} 10:20:30.000000",
                    f"2027-{number % 12 + 1:02d}-{number % 28 + 1:02d} 00:00:00.000000",
                    chance.randrange(2**40),
                    f"{chance.getrandbits(128):032x}",
                    None if number % 3 else "a note of some length",
                )
                for number in range(1, users + 1)
            ),
        )


async def migrate(source: str, target: str, events: str, work: str) -> dict[str, Any]:
    """One whole run; seconds by stage, the load's rate in its first and last tenth, peak memory."""
    collect_rarely()  # as every process of ours does
    return_buffers()
    marks: list[tuple[float, int]] = []

    def watch(progress: Progress) -> None:
        if progress.stage == "load":
            marks.append((time.perf_counter(), progress.done))

    seconds: dict[str, float] = {}
    async with EventStore(EventStoreConfig(database_url=events)) as store:
        migration = Migration(
            parse_mapping(MAPPING),
            source_url=source,
            target_url=target,
            store=store,
            work_dir=Path(work),
            migration_id="migration-bench",
            secret="a secret of the benchmark",
            on_progress=watch,
        )
        began = time.perf_counter()
        for stage in ("start", "check_schema", *STAGES, "complete"):
            started = time.perf_counter()
            await getattr(migration, stage)()
            seconds[stage] = time.perf_counter() - started
    return {
        "total": time.perf_counter() - began,
        "seconds": seconds,
        "tenths": tenths(marks),
        "peak_mb": peak_memory_mb(),
    }


def tenths(marks: list[tuple[float, int]]) -> float | None:
    """The rate of the last tenth of the records against that of the first; None when they are too few."""
    if len(marks) < 21:
        return None
    size = len(marks) // 10
    (t0, n0), (t1, n1) = marks[0], marks[size]
    (t2, n2), (t3, n3) = marks[-1 - size], marks[-1]
    return ((n3 - n2) / (t3 - t2)) / ((n1 - n0) / (t1 - t0))


def copied(url: str, ddl: str | None, table: str, columns: str, content: Path) -> float:
    """The seconds that one COPY of a file into an empty table takes, committed."""
    with closing(psycopg2.connect(plain(url))) as connection, connection.cursor() as cursor:
        if ddl:
            cursor.execute(ddl)
            connection.commit()
        with content.open("rb") as file:
            began = time.perf_counter()
            cursor.copy_expert(f"COPY {table} ({columns}) FROM STDIN (FORMAT binary)", file, 1 << 20)
            connection.commit()
            return time.perf_counter() - began


def dumped(url: str, query: str, path: Path) -> Path:
    """The rows of a query as a binary COPY file."""
    with (
        closing(psycopg2.connect(plain(url))) as connection,
        connection.cursor() as cursor,
        path.open("wb") as file,
    ):
        cursor.copy_expert(f"COPY ({query}) TO STDOUT (FORMAT binary)", file)
    return path


def plain(url: str) -> str:
    parsed = sa.make_url(url).set(drivername="postgresql")
    return parsed.render_as_string(hide_password=False)


def pgloaded(source: Path, url: str) -> float | None:
    """The seconds that pgloader takes for the same table, as a whole process; None where it is not."""
    binary = shutil.which("pgloader")
    if binary is None:
        return None
    began = time.perf_counter()
    done = subprocess.run([binary, f"sqlite://{source}", plain(url)], capture_output=True, check=False)
    took = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(done.stderr.decode()[-500:])
    return took


def measure(server: EmbeddedPostgres, folder: Path, users: int) -> dict[str, Any]:
    """Migrate once, then copy what was written; everything on the same server."""
    source = folder / "users.db"
    make_source(source, users)
    names = ("bench_events", "bench_target", "bench_copy_events", "bench_copy", "bench_pgloader")
    for name in names:
        server.ensure_database(name)
    events, target, copy_events, copy, loader = map(server.url, names)
    for url in (events, copy_events):
        asyncio.run(upgrade(url))
    with closing(psycopg2.connect(plain(target))) as connection, connection, connection.cursor() as cursor:
        cursor.execute(TARGET)
    arguments = [f"sqlite:///{source}", target, events, str(folder / "work")]
    child = [sys.executable, "-m", "tests.benchmarks.migration", "--child", *arguments]
    ours: dict[str, Any] = json.loads(subprocess.run(child, check=True, stdout=subprocess.PIPE).stdout)
    rows = dumped(target, "SELECT * FROM accounts ORDER BY id", folder / "rows")
    told = f"SELECT {EVENT_COLUMNS} FROM events WHERE event_type = 'user.migrated' ORDER BY position"
    bytes_of_events = dumped(events, told, folder / "events")
    columns = [line.split()[0] for line in TARGET.partition("(")[2].replace("\n", " ").split(", ")]
    ours["copy_rows"] = copied(copy, TARGET, "accounts", ", ".join(columns), rows)
    ours["copy_events"] = copied(copy_events, None, "events", EVENT_COLUMNS, bytes_of_events)
    ours["pgloader"] = pgloaded(source, loader)
    return ours


def show(found: dict[str, Any], users: int, version: str) -> None:
    """Print one table."""
    title = f"{users:,} users, one event each; PostgreSQL {version}, fsync on, {os.cpu_count()} cores"
    table = Table(title=title, width=84)
    for name in ("what", "seconds", "share", "users/s"):
        table.add_column(name, justify="left" if name == "what" else "right")
    copied = found["copy_rows"] + found["copy_events"]
    whole = found["total"]
    table.add_row("migration, whole", f"{whole:.2f}", "", f"{users / whole:,.0f}")
    for stage, seconds in found["seconds"].items():
        rate = f"{users / seconds:,.0f}" if stage in STAGES else ""
        table.add_row(
            f"  {stage}", f"{seconds:.2f}", f"{seconds / whole:.0%}", rate, end_section=stage == "complete"
        )
    peers = {"raw COPY of the rows": "copy_rows", "raw COPY of the events": "copy_events"}
    peers["pgloader, rows only"] = "pgloader"
    for what, name in peers.items():
        if (seconds := found[name]) is not None:
            table.add_row(what, f"{seconds:.2f}", "", f"{users / seconds:,.0f}")
    table.add_section()
    loader, tenths = found["pgloader"], found["tenths"]
    table.add_row("× raw COPY of rows and events (target 1.1)", f"{whole / copied:.2f}")
    table.add_row("× pgloader (target 3)", "not installed" if loader is None else f"{whole / loader:.2f}")
    table.add_row("peak memory, MB (target 500)", f"{found['peak_mb']:.0f}")
    table.add_row(
        "load: rate of last tenth / first (target 1)", "too few" if tenths is None else f"{tenths:.2f}"
    )
    Console(width=84).print(table)


def main(users: int = 100_000) -> None:
    """Measure on a server of its own and print."""
    folder = Path(tempfile.mkdtemp(prefix="esm-bench-migration-"))
    folder.chmod(0o755)
    server = EmbeddedPostgres(folder / "postgres")
    server.start()
    try:
        found = measure(server, folder, users)
        with closing(psycopg2.connect(plain(server.url("postgres")))) as connection:
            show(found, users, str(connection.server_version // 10_000))
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--child", nargs=4)
    options = parser.parse_args()
    if options.child:
        sys.stdout.write(json.dumps(asyncio.run(migrate(*options.child))))
    else:
        main(options.users)
