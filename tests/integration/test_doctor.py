"""`esm doctor`: each check against the thing really broken, and the cure that it names."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from eventsourcing import EventBusConfig, EventStore, UserMigratedEvent
from eventsourcing.dead_letters import DeadLetter, park
from eventsourcing.diagnosis import Finding, database_findings, store_findings
from eventsourcing.errors import HandlerError
from eventsourcing.readmodels import READ_MODELS
from eventsourcing.storage.base import CHECKPOINTS
from eventsourcing.storage.postgres import PostgresStorage
from tests.api.conftest import free_port
from tests.conftest import kafka_config, remove_topics
from tests.waiting import until

ROOT = Path(__file__).parents[2]

PORTS = ("EVENT_SERVICE", "REPLAY_SERVICE", "DAGSTER")
CHECKS = ("disk", "memory", "database", "schema", "rights", "clock", "horizon", "worker", "dead letters")

Findings = dict[str, dict[str, str]]
Doctor = Callable[..., tuple[int, Findings]]


def environment(**settings: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **settings}


@pytest.fixture
def doctor(tmp_path: Path, store_url: str) -> Doctor:
    """Run the command; its exit code, and its findings by check."""

    def run(**settings: str) -> tuple[int, Findings]:
        ports = {
            f"ESM_{name}_PORT": str(free_port()) for name in ("EVENT_SERVICE", "REPLAY_SERVICE", "DAGSTER")
        }
        given = {"DATABASE_URL": store_url, "ESM_DATA_DIR": str(tmp_path), **ports, **settings}
        done = subprocess.run(
            [sys.executable, "-m", "api.cli", "doctor", "--json"],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                **{name: value for name, value in given.items() if value},
            },
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert "Traceback" not in done.stderr, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return done.returncode, {line["check"]: line for line in lines}

    return run


def event(name: str = "u") -> UserMigratedEvent:
    return UserMigratedEvent(user_id=name, username=name, source_data={}, target_data={})


@contextmanager
def owner(url: str) -> Iterator[Any]:
    """A connection of the owner, each statement a transaction."""
    engine = create_engine(
        make_url(url).set(drivername="postgresql+psycopg2"), poolclass=NullPool, isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        yield lambda statement: connection.execute(text(statement))
    engine.dispose()


@pytest.fixture
def worker(store_url: str, tmp_path: Path) -> Iterator[None]:
    """A worker on the store."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "DATABASE_URL": store_url,
        "ESM_DATA_DIR": str(tmp_path),
    }
    with subprocess.Popen([sys.executable, "-m", "api.cli", "worker"], env=environment, cwd=ROOT) as process:
        yield
        process.terminate()


@pytest.mark.usefixtures("worker")
async def test_nothing_is_found_where_nothing_is_wrong(doctor: Doctor, store_url: str) -> None:
    async with EventStore(storage=PostgresStorage(store_url)) as store:
        await store.append_event(event())

    async def well() -> bool:
        code, found = await asyncio.to_thread(doctor)
        checks = (
            "disk",
            "memory",
            "database",
            "schema",
            "rights",
            "clock",
            "horizon",
            "worker",
            "dead letters",
        )
        return code == 0 and all(found[check]["status"] == "ok" for check in checks)

    await until(well)


def test_a_database_that_is_away_or_refuses_us(doctor: Doctor, store_url: str) -> None:
    code, found = doctor(DATABASE_URL=f"postgresql://user:canary-1@127.0.0.1:{free_port()}/events")
    assert code == 1
    assert "docker-compose.kafka.yml ps event-store-db" in found["database"]["cure"]
    assert "canary-1" not in json.dumps(found)
    nobody = make_url(store_url).set(username=f"nobody_{uuid4().hex[:6]}")
    code, found = doctor(DATABASE_URL=nobody.render_as_string(hide_password=False))
    assert (code, found["database"]["status"]) == (1, "failed")
    assert "user, password and name" in found["database"]["cure"]


def test_an_embedded_server_that_does_not_run(doctor: Doctor) -> None:
    code, found = doctor(DATABASE_URL="")
    assert code == 1
    assert found["database"]["says"] == "the embedded PostgreSQL is not running"


def test_an_older_and_a_newer_schema(doctor: Doctor, store_url: str) -> None:
    with owner(store_url) as run:
        (before,) = run("SELECT version_num FROM event_store_version").one()
        try:
            for version, cure in (("0001", "esm db upgrade"), ("9999", "run the newer version")):
                run(f"UPDATE event_store_version SET version_num = '{version}'")
                code, found = doctor()
                assert (code, found["schema"]["status"]) == (1, "failed")
                assert cure in found["schema"]["cure"]
                assert "worker" not in found, "what cannot be looked at is left out"
        finally:
            run(f"UPDATE event_store_version SET version_num = '{before}'")


def test_a_user_that_may_only_look(doctor: Doctor, store_url: str) -> None:
    name = f"looker_{uuid4().hex[:8]}"
    with owner(store_url) as run:
        run(f"CREATE ROLE {name} LOGIN IN ROLE esm_reader")
        try:
            url = make_url(store_url).set(username=name).render_as_string(hide_password=False)
            code, found = doctor(DATABASE_URL=url)
        finally:
            run(f"DROP ROLE {name}")
    assert code == 1
    assert found["rights"]["says"] == f"{name} may not append events"
    assert f"GRANT esm_writer TO {name}" in found["rights"]["cure"]


async def test_a_store_that_was_restored_below_what_readers_saw(doctor: Doctor, store_url: str) -> None:
    async with EventStore(storage=PostgresStorage(store_url)) as store:
        head = (await store.append_event(event())).position
        async with store.storage.transaction() as transaction:
            await transaction.put(CHECKPOINTS, "group/audit", {"position": head + 7})
        code, found = await asyncio.to_thread(doctor)
    assert (code, found["positions"]["status"]) == (1, "failed")
    assert f"esm db rebase {head + 7}" in found["positions"]["cure"]


async def in_store(url: str) -> dict[str, Finding]:
    """What is found in the store, in this process."""
    from eventsourcing.bootstrap import open_system
    from eventsourcing.config import Settings

    async with open_system(Settings(database_url=url)) as system:
        return {finding.check: finding async for finding in store_findings(system)}


async def test_an_append_that_stays_open(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventsourcing.diagnosis.OLD_APPEND_S", 0.1)
    engine = create_engine(make_url(store_url).set(drivername="postgresql+psycopg2"), poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("SELECT 1 FROM open_append('{}'::text[], 1)"))
        await asyncio.sleep(0.3)
        found = await in_store(store_url)
        connection.rollback()
    engine.dispose()
    assert found["horizon"].status == "warning"
    assert "pg_terminate_backend" in found["horizon"].cure
    assert (await in_store(store_url))["horizon"].status == "ok"


async def test_no_worker_and_who_is_behind(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventsourcing.diagnosis.BEHIND_S", 0.1)
    async with EventStore(storage=PostgresStorage(store_url)) as store:
        await store.append_event(event())
        async with store.storage.transaction() as transaction:
            await transaction.put(CHECKPOINTS, "group/mail", {"position": 0, "circuit": "open"})
            await transaction.put(CHECKPOINTS, "relay/relay", {"position": 0})
    await asyncio.sleep(0.2)
    found = await in_store(store_url)
    assert found["worker"].status == "failed"
    assert "esm worker" in found["worker"].cure
    behind = {name for name, finding in found.items() if name.startswith("read-model")}
    assert len(behind) == len(READ_MODELS)
    assert all(found[name].status == "failed" for name in behind)
    assert found["group mail"].says == "paused: what its handlers need is away"
    assert "Kafka" in found["relay relay"].cure


async def test_dead_letters(doctor: Doctor, store_url: str) -> None:
    async with EventStore(storage=PostgresStorage(store_url)) as store:
        stored = await store.append_event(event())
        failure = HandlerError(stored.event_id, handler="mail", attempts=1, reason="poison")
        async with store.storage.transaction() as transaction:
            await park(transaction, "mail", [DeadLetter(stored, failure)])
        _, found = await asyncio.to_thread(doctor)
    assert found["dead letters"]["says"] == "1 event in mail to be looked at"
    assert "esm dlq list" in found["dead letters"]["cure"]


async def test_clocks_that_differ(store_url: str) -> None:
    ahead = [
        finding
        async for finding in database_findings(store_url, now=lambda: datetime.now(UTC) + timedelta(hours=1))
    ]
    assert next(finding for finding in ahead if finding.check == "clock").status == "warning"


def test_a_full_disk(doctor: Doctor, tmp_path: Path) -> None:
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("making a small disk takes root on Linux")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], check=False)
    if mounted.returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        code, found = doctor(ESM_DATA_DIR=str(small))
    finally:
        subprocess.run(["umount", small], check=True)
    assert (code, found["disk"]["status"]) == (1, "failed")
    assert "ESM_DATA_DIR" in found["disk"]["cure"]


class Stranger(BaseHTTPRequestHandler):
    """Another program's server."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    do_POST = do_GET  # noqa: N815 - the name is given

    def log_message(self, *_: object) -> None:
        pass


def test_ports_that_belong_to_another_program(doctor: Doctor) -> None:
    with HTTPServer(("127.0.0.1", 0), Stranger) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = str(server.server_address[1])
        code, found = doctor(ESM_EVENT_SERVICE_PORT=port, ESM_DAGSTER_PORT=port)
        server.shutdown()
    assert code == 1
    assert found["event-service"]["says"] == f"port {port} belongs to another program"
    assert "ESM_EVENT_SERVICE_PORT" in found["event-service"]["cure"]
    assert found["dagster"]["says"] == f"port {port} belongs to another program"
    assert found["replay-service"]["status"] == "warning"


@pytest.mark.timeout(300)
def test_dagster_without_its_daemon_and_without_its_jobs(
    doctor: Doctor, new_database: Callable[[], str], tmp_path: Path
) -> None:
    port = free_port()
    dagster = make_url(new_database()).set(drivername="postgresql").render_as_string(hide_password=False)
    settings = {
        "ESM_DAGSTER_DATABASE_URL": dagster,
        "ESM_DAGSTER_PORT": str(port),
        "ESM_DAGSTER_CODE_SERVER": f"127.0.0.1:{free_port()}",
        "DATABASE_URL": new_database(),
        "ESM_DATA_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "api.cli", "dagster", "webserver"]
    with subprocess.Popen(command, env=environment(**settings), stderr=subprocess.DEVNULL) as process:
        _await_port(port)
        code, found = doctor(**settings)
        process.terminate()
    assert code == 1
    assert "dagster-code-server" in found["dagster jobs"]["cure"]
    assert "no sign of life" in found["dagster daemon"]["says"]
    assert "exactly one daemon" in found["dagster daemon"]["cure"]


def _await_port(port: int) -> None:
    async def open_port() -> None:
        async def listens() -> bool:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                return False
            return True

        await until(listens, within_s=120)

    asyncio.run(open_port())


def test_kafka_that_is_away_and_topics_that_are_wrong(doctor: Doctor, kafka_address: str) -> None:
    code, found = doctor(KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:{free_port()}")
    assert (code, found["kafka"]["status"]) == (1, "failed")
    assert "kafka:29092 inside Compose, localhost:9092 outside" in found["kafka"]["cure"]
    config: EventBusConfig = kafka_config(kafka_address)
    settings = {"KAFKA_BOOTSTRAP_SERVERS": kafka_address, "ESM_TOPIC_PREFIX": config.topic_prefix}
    _, found = doctor(**settings)
    assert found["kafka"]["status"] == "ok"
    assert "ESM_KAFKA_PROVISIONING=create" in found["topics"]["cure"]
    admin = AdminClient({"bootstrap.servers": kafka_address})
    wrong = NewTopic(f"{config.topic_prefix}.user.migrated", num_partitions=3)
    for made in admin.create_topics([wrong]).values():
        made.result(timeout=10)
    try:
        code, found = doctor(**settings)
    finally:
        remove_topics(config)
    assert (code, found["topics"]["status"]) == (1, "failed")
    assert "ESM_KAFKA_PARTITIONS=3" in found["topics"]["cure"]


def test_the_table_for_people_names_the_cure(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "api.cli", "doctor"],
        env=environment(ESM_DATA_DIR=str(tmp_path / "none"), COLUMNS="200"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "esm up starts it" in done.stdout
    assert not (tmp_path / "none").exists(), "looking makes nothing"
