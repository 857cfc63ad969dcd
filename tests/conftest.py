"""Real backends for the tests: memory, and PostgreSQL from the environment's own binaries.

A backend that cannot run here is skipped with its reason; with REQUIRE_BACKENDS=all that is a failure.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.pool import NullPool

from eventsourcing import EventStore
from eventsourcing.storage.embedded import EmbeddedPostgres
from eventsourcing.storage.postgres import PostgresStorage

REQUIRE_ALL = os.environ.get("REQUIRE_BACKENDS") == "all"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With REQUIRE_BACKENDS=all nothing may be skipped, whatever the reason."""
    report = yield
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and REQUIRE_BACKENDS=all: {report.longrepr}"
    return report


def pytest_configure() -> None:
    for name in list(os.environ):
        if name.startswith("ESM_") or name in ("DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS", "LOG_LEVEL"):
            del os.environ[name]  # a developer's settings must not reach the tests


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """One PostgreSQL server for the whole session, removed at its end."""
    directory = Path(tempfile.mkdtemp(prefix="esm-tests-"))
    directory.chmod(0o755)  # the server may run as another user
    server = EmbeddedPostgres(directory)
    try:
        server.start()
    except Exception as error:  # noqa: BLE001 - any reason is a reason to skip, or to fail where it must run
        unavailable("PostgreSQL", str(error))
    yield server
    server.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def administration(postgres_server: EmbeddedPostgres) -> Iterator[Connection]:
    """A connection that makes and drops databases. No test here loses power: syncing is off."""
    engine = create_engine(
        postgres_server.url("postgres", driver="psycopg2"), poolclass=NullPool, isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.execute(text("ALTER SYSTEM SET fsync = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
        yield connection
    engine.dispose()


@pytest.fixture(scope="session")
def emptied(postgres_server: EmbeddedPostgres, administration: Connection) -> Iterator[Callable[[], str]]:
    """Empty the one shared database each call; its URL. Making a database costs ten times as much."""
    postgres_server.ensure_database("shared")
    engine = create_engine(
        postgres_server.url("shared", driver="psycopg2"), poolclass=NullPool, isolation_level="AUTOCOMMIT"
    )

    def empty() -> str:
        with engine.connect() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = 'shared' AND pid <> pg_backend_pid()"
                )
            )
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
        return postgres_server.url("shared")

    yield empty
    engine.dispose()


@pytest.fixture
def new_database(
    postgres_server: EmbeddedPostgres, administration: Connection
) -> Iterator[Callable[[], str]]:
    """Make an empty database each call; its URL. All are dropped at the end of the test."""
    names: list[str] = []

    def create() -> str:
        names.append(f"test_{uuid4().hex}")
        administration.execute(text(f"CREATE DATABASE {names[-1]}"))
        return postgres_server.url(names[-1])

    yield create
    for name in names:
        administration.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def database_url(emptied: Callable[[], str]) -> str:
    """The URL of one empty PostgreSQL database; the same one throughout a test."""
    return emptied()


@pytest.fixture(params=["memory", "postgres"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[EventStore]:
    """An empty store on every storage in turn."""
    if request.param == "memory":
        made = EventStore(use_memory=True)
    else:
        made = EventStore(storage=PostgresStorage(request.getfixturevalue("database_url")))
    async with made:
        yield made


def unavailable(backend: str, reason: str) -> None:
    """Skip what needs the backend; where every backend must run, that is a failure."""
    pytest.skip(f"{backend} cannot run here: {reason}")
