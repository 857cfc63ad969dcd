"""Real backends for the tests: memory, PostgreSQL, and Kafka on a JVM.

A backend that cannot run here is skipped with its reason; with REQUIRE_BACKENDS=all that is a failure.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka.admin import AdminClient

from deploy.kafka.broker import Broker, BrokerUnavailableError
from eventsourcing import EventBusConfig, EventStore
from eventsourcing.storage.embedded import EmbeddedPostgres
from eventsourcing.storage.postgres import PostgresStorage
from tests.databases import Databases
from tests.servers import NEWEST, server_of, unavailable

GIVEN_KAFKA = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
"""A broker that the environment names is used instead of one of our own."""

HERE = Path(__file__).parent
LONGEST_FIRST = ("deployment", "integration", "faults", "api", "pipelines", "acceptance", "conformance")
"""Folders by how long their files take: whole systems before parts of them."""

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files begin first, or one process would end with them while the others are idle.

    Within a folder the order stays as it is: random.
    """
    items.sort(key=lambda item: _rank(item.path.relative_to(HERE).parts[0]))


def _rank(folder: str) -> int:
    return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else len(LONGEST_FIRST)


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


@pytest.fixture(scope="session")
def kafka_address() -> Iterator[str]:
    """The address of one Kafka broker for the whole session."""
    if GIVEN_KAFKA:
        yield GIVEN_KAFKA
        return
    with own_broker() as broker:
        yield broker.address


@pytest.fixture
def kafka(kafka_address: str) -> Iterator[EventBusConfig]:
    """A bus on the session's broker under a prefix of its own; its topics are removed at the end."""
    config = kafka_config(kafka_address)
    yield config
    remove_topics(config)


def kafka_config(address: str, **changes: Any) -> EventBusConfig:
    """A bus on a broker, with a prefix that nobody else has."""
    options = {"session.timeout.ms": 6_000, "topic.metadata.refresh.interval.ms": 1_000}
    return EventBusConfig(
        kafka_bootstrap_servers=address,
        topic_prefix=f"test-{uuid4().hex[:12]}",
        kafka_partitions=2,
        kafka_options=options | changes.pop("kafka_options", {}),
        **changes,
    )


def remove_topics(config: EventBusConfig) -> None:
    """Remove the topics of a prefix."""
    admin = AdminClient({"bootstrap.servers": config.kafka_bootstrap_servers or ""})
    mine = [name for name in admin.list_topics(timeout=10).topics if name.startswith(config.topic_prefix)]
    for removed in admin.delete_topics(mine).values() if mine else ():
        removed.result(timeout=10)


@pytest.fixture
def kafka_broker() -> Iterator[Broker]:
    """A broker of the test's own, which it may stop and start."""
    with own_broker() as broker:
        yield broker


@contextmanager
def own_broker() -> Iterator[Broker]:
    """A running broker on a temporary directory."""
    directory = Path(tempfile.mkdtemp(prefix="esm-kafka-"))
    broker = Broker(directory / "broker")
    try:
        broker.start()
    except BrokerUnavailableError as error:
        unavailable("Kafka", str(error))
    try:
        yield broker
    finally:
        broker.stop()
        shutil.rmtree(directory, ignore_errors=True)
