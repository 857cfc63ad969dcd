"""The whole Compose file as processes, over a real PostgreSQL and a real Kafka, once for a file of tests."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from deploy.rehearse import ROOT, Rehearsal, load_compose
from tests.conftest import own_broker
from tests.servers import NEWEST, Server, server_of


@dataclass(frozen=True)
class Deployment:
    """What runs, and how to reach it as its own commands would."""

    rehearsal: Rehearsal
    database: Server
    kafka: str

    def url(self, service: str, port: int) -> str:
        return f"http://{self.rehearsal.address(service)}:{port}"


@contextmanager
def rehearsal_directory() -> Iterator[Path]:
    """A directory that is not below /tmp, for a container has one of its own."""
    directory = Path(tempfile.mkdtemp(prefix="esm-rehearsal-", dir="/var/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for a rehearsal of the test's own."""
    with rehearsal_directory() as directory:
        yield directory


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    """Everything that `docker compose up` would start, healthy; it ends with the file's last test, for a
    folder that is no package would keep it until the session's end."""
    compose = load_compose(ROOT / "docker-compose.yml")
    with rehearsal_directory() as directory, server_of(NEWEST) as server, own_broker() as broker:
        address = _published(server, compose["services"]["event-store-db"])
        places = {"event-store-db:5432": f"{address}:5432", "kafka:29092": broker.address}
        rehearsal = Rehearsal(compose, directory, places)
        try:
            rehearsal.up()
            rehearsal.await_healthy()
            yield Deployment(rehearsal, server, broker.address)
            ended_in_order(rehearsal.down())
        finally:
            rehearsal.down()


def ended_in_order(codes: dict[str, int | None]) -> None:
    """SIGTERM ends every container within its grace; ours say that nothing went wrong."""
    assert {name: code for name, code in codes.items() if code is None} == {}, "killed after the grace"
    ours = ("migrate", "event-service", "replay-service", "worker")
    assert {name: codes[name] for name in ours} == dict.fromkeys(ours, 0)


def _published(server: Server, service: dict[str, Any]) -> str:
    """Start the event database as its image would, asking for passwords; its address."""
    given = service["environment"]
    address = f"127.{random.randrange(16, 240)}.{random.randrange(1, 250)}.250"
    (server.data / "pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.0/8 scram-sha-256\n")
    server.start(f"listen_addresses={address}", "fsync=off")
    statements = (
        f"CREATE ROLE {given['POSTGRES_USER']} SUPERUSER LOGIN PASSWORD '{given['POSTGRES_PASSWORD']}'",
        f"CREATE DATABASE {given['POSTGRES_DB']} OWNER {given['POSTGRES_USER']}",
    )
    for statement in statements:
        server.run("psql", "-qX", "-h", server.directory, "-U", "postgres", "-c", statement)
    return address


def owner_url(deployment: Deployment) -> str:
    """The URL by which the owner of the event database connects."""
    user = make_url((ROOT / "deploy/secrets/owner_database_url").read_text("utf-8").strip()).username
    return deployment.database.url("event_store", user=str(user))
