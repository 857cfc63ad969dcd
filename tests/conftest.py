"""Real backends for the tests: memory, and PostgreSQL from the environment's own binaries.

A backend that cannot run here is skipped with its reason; with REQUIRE_BACKENDS=all that is a failure.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from eventsourcing import EventStore
from eventsourcing.storage.embedded import EmbeddedPostgres
from eventsourcing.storage.postgres import PostgresStorage
from tests.databases import Databases
from tests.servers import NEWEST, server_of, unavailable

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
def databases(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Databases]]:
    """The databases of a PostgreSQL version; its server starts when somebody first asks for it."""
    made: dict[str, Databases] = {}
    with ExitStack() as stack:

        def of_version(version: str) -> Databases:
            if version not in made:
                if version == NEWEST:
                    made[version] = Databases(request.getfixturevalue("postgres_server"))
                else:
                    server = stack.enter_context(server_of(version))
                    server.start("fsync=off")
                    made[version] = Databases(server)
                stack.callback(made[version].close)
            return made[version]

        yield of_version


@pytest.fixture
def new_database(
    postgres_server: EmbeddedPostgres, databases: Callable[[str], Databases]
) -> Iterator[Callable[[], str]]:
    """Make an empty database each call; its URL. All are dropped at the end of the test."""
    names: list[str] = []
    newest = databases(NEWEST)

    def create() -> str:
        names.append(newest.create())
        return postgres_server.url(names[-1])

    yield create
    for name in names:
        newest.drop(name)


@pytest.fixture
def database_url(databases: Callable[[str], Databases]) -> str:
    """The URL of one empty PostgreSQL database; the same one throughout a test."""
    return databases(NEWEST).empty()


@pytest.fixture
def store_url(databases: Callable[[str], Databases]) -> str:
    """The URL of an event store without events on PostgreSQL; the same one throughout a test."""
    return databases(NEWEST).clear()


@pytest.fixture(params=["memory", "postgres"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[EventStore]:
    """An empty store on every storage in turn."""
    if request.param == "memory":
        made = EventStore(use_memory=True)
    else:
        made = EventStore(storage=PostgresStorage(request.getfixturevalue("store_url")))
    async with made:
        yield made
