"""Encrypted connections, for real: whom we trust is served, everybody else is refused with a reason."""

from __future__ import annotations

import os
import random
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import httpx2
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from eventsourcing import EventBus, EventBusConfig, EventStore, Settings, UserMigratedEvent
from eventsourcing.errors import ConfigurationError, UnavailableError
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.testing import InMemoryHandler
from resources.siblings import sibling_database
from tests.api.conftest import free_port
from tests.brokers import secured_broker
from tests.certificates import Authority, authority
from tests.servers import OLDEST, Server, own, server_of
from tests.waiting import until

ROOT = Path(__file__).parents[2]
ADDRESS = f"127.{random.randrange(16, 240)}.{random.randrange(1, 250)}.1"
PASSWORD = "right-canary-73"


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("trusted"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("stranger"))


# PostgreSQL


@pytest.fixture(scope="module")
def encrypted_server(trusted: Authority) -> Iterator[tuple[Server, str]]:
    """A PostgreSQL that lets nobody in over TCP without TLS. The wheel's newest one has no TLS."""
    with server_of(OLDEST) as server:
        certificate, key = trusted.sign("postgresql", address=ADDRESS)
        for source, name in ((certificate, "server.crt"), (key, "server.key")):
            shutil.copy(source, server.data / name)
            (server.data / name).chmod(0o600)
            own(server.data / name)
        (server.data / "pg_hba.conf").write_text(
            "local all all trust\nhostssl all all 127.0.0.0/8 scram-sha-256\n"
        )
        server.start("ssl=on", f"listen_addresses={ADDRESS}", "fsync=off")
        say = f"ALTER ROLE postgres PASSWORD '{PASSWORD}'"
        server.run("psql", "-qX", "-h", server.directory, "-U", "postgres", "-c", say)
        yield server, ADDRESS


def encrypted_settings(
    server: tuple[Server, str], monkeypatch: pytest.MonkeyPatch, password: str = PASSWORD, **values: str
) -> Settings:
    """Settings over a new database of the server, `values` among the environment."""
    host, address = server
    name = f"tls_{uuid4().hex[:12]}"
    engine = create_engine(
        host.url(driver="psycopg2"),
        isolation_level="AUTOCOMMIT",
    )
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    monkeypatch.setenv("DATABASE_URL", f"postgresql+asyncpg://postgres:{password}@{address}/{name}")
    for key, value in values.items():
        monkeypatch.setenv(key, value)
    return Settings.load()


async def test_the_event_database_is_reached_encrypted_by_everything_that_reaches_it(
    encrypted_server: tuple[Server, str], trusted: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = encrypted_settings(
        encrypted_server,
        monkeypatch,
        ESM_DATABASE_SSLMODE="verify-full",
        ESM_DATABASE_SSL_ROOT_CERT=str(trusted.certificate),
    )
    assert settings.database_url is not None
    async with EventStore(settings.store_config()) as store:  # the schema by SQLAlchemy, the rest by asyncpg
        await store.append_event(UserMigratedEvent(user_id="u", username="u", source_data={}, target_data={}))
        assert isinstance(store.storage, PostgresStorage)
        question = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert await store.storage.pool.fetchval(question) is True
        async with store.storage.lease("tls") as ours:
            assert ours
    engine = create_engine(sibling_database(settings, f"beside_{uuid4().hex[:8]}"))  # psycopg2
    with engine.connect() as connection:
        assert connection.execute(text(question)).scalar() is True
    engine.dispose()
    assert Settings.load().database_url == settings.database_url


async def test_a_wrong_password_is_refused_and_not_told(
    encrypted_server: tuple[Server, str], trusted: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    encrypted = {
        "ESM_DATABASE_SSLMODE": "verify-full",
        "ESM_DATABASE_SSL_ROOT_CERT": str(trusted.certificate),
    }
    settings = encrypted_settings(encrypted_server, monkeypatch, password="wrong-canary-74", **encrypted)
    with pytest.raises(ConfigurationError, match="password authentication failed") as told:
        await EventStore(settings.store_config()).initialize()
    assert "canary" not in str(told.value)


@pytest.mark.parametrize("mode", ["disable", "verify-ca", "verify-full"])
async def test_a_database_that_is_not_to_be_trusted_is_refused(
    encrypted_server: tuple[Server, str], stranger: Authority, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    root = {} if mode == "disable" else {"ESM_DATABASE_SSL_ROOT_CERT": str(stranger.certificate)}
    settings = encrypted_settings(encrypted_server, monkeypatch, ESM_DATABASE_SSLMODE=mode, **root)
    with pytest.raises((ConfigurationError, UnavailableError), match=r"certificate|no encryption"):
        await EventStore(settings.store_config()).initialize()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ESM_TLS_CERT_FILE": "/a"}, "ESM_TLS_CERT_FILE and ESM_TLS_KEY_FILE belong together"),
        ({"ESM_TLS_CLIENT_CA_FILE": "/a"}, "ESM_TLS_CLIENT_CA_FILE has no effect without ESM_TLS_CERT_FILE"),
        ({"ESM_DATABASE_SSLMODE": "require", "DATABASE_URL": ""}, "needs a DATABASE_URL"),
        ({"ESM_DATABASE_SSLMODE": "verify-full"}, "needs ESM_DATABASE_SSL_ROOT_CERT"),
        (
            {"ESM_DATABASE_SSL_ROOT_CERT": "/a", "ESM_DATABASE_SSLMODE": "require"},
            "looks at a root certificate",
        ),
        (
            {"ESM_DATABASE_SSLMODE": "verify-ca", "ESM_DATABASE_SSL_ROOT_CERT": "/nowhere"},
            "ESM_DATABASE_SSL_ROOT_CERT is not a file",
        ),
        (
            {"ESM_DATABASE_SSLMODE": "require", "DATABASE_URL": "postgresql://u@h/d?sslmode=disable"},
            "DATABASE_URL says another sslmode than the settings",
        ),
        ({"ESM_DATABASE_SSLMODE": "perhaps"}, "ESM_DATABASE_SSLMODE"),
        ({"ESM_KAFKA_OPTION_SSL_CA_LOCATION": "/a"}, "has no effect with security.protocol=PLAINTEXT"),
        (
            {"ESM_KAFKA_OPTIONS": "security.protocol=SSL\nsasl.username=me"},
            "sasl.username has no effect with security.protocol=SSL; set SASL_SSL",
        ),
        ({"ESM_KAFKA_OPTIONS": "security.protocol=SASL_SSL"}, "needs sasl.mechanisms"),
    ],
)
def test_settings_that_contradict_each_other_are_one_line(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], said: str
) -> None:
    for name, value in {"DATABASE_URL": "postgresql://u@h/d", **given}.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError) as raised:
        Settings.load()
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_asyncpgs_word_for_encryption_is_understood_by_every_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql+asyncpg://u@h/d?ssl=require")
    assert make_url(Settings.load().database_url or "").query == {"sslmode": "require"}


# The services


def tls_settings(store_url: str, authority: Authority, name: str) -> dict[str, str]:
    """The settings of an Event Service that speaks TLS on a port of its own."""
    certificate, key = authority.sign(name)
    return {
        "DATABASE_URL": store_url,
        "ESM_EVENT_SERVICE_PORT": str(free_port()),
        "ESM_TLS_CERT_FILE": str(certificate),
        "ESM_TLS_KEY_FILE": str(key),
    }


@contextmanager
def event_service(settings: dict[str, str]) -> Iterator[None]:
    """An Event Service that runs; it must end well."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings}
    command = [sys.executable, "-m", "api.event_service"]
    with subprocess.Popen(command, env=environment, cwd=ROOT) as process:
        try:
            yield
        finally:
            process.terminate()
        assert process.wait(timeout=15) == 0


@pytest.fixture
def service(store_url: str, trusted: Authority) -> Iterator[tuple[str, dict[str, str]]]:
    """The URL of an Event Service that speaks TLS and asks callers for a certificate."""
    settings = tls_settings(store_url, trusted, "service")
    settings["ESM_TLS_CLIENT_CA_FILE"] = str(trusted.certificate)
    with event_service(settings):
        yield f"https://127.0.0.1:{settings['ESM_EVENT_SERVICE_PORT']}", settings


def client(trusts: Authority, shows: tuple[Path, Path] | None) -> httpx2.Client:
    context = ssl.create_default_context(cafile=str(trusts.certificate))
    if shows is not None:
        context.load_cert_chain(*shows)
    return httpx2.Client(verify=context, timeout=5)


def test_a_service_speaks_tls_to_whom_it_trusts_and_to_nobody_else(
    service: tuple[str, dict[str, str]], trusted: Authority, stranger: Authority
) -> None:
    url, _ = service
    with client(trusted, trusted.sign("caller")) as known:
        deadline = time.monotonic() + 30
        while True:
            try:
                answer = known.get(f"{url}/readyz")
                break
            except httpx2.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert answer.json()["service"] == "event-service"
    for trusts, shows in ((trusted, None), (trusted, stranger.sign("caller")), (stranger, None)):
        with client(trusts, shows) as refused, pytest.raises(httpx2.TransportError):
            refused.get(f"{url}/readyz")
    with pytest.raises(httpx2.TransportError):
        httpx2.get(url.replace("https", "http") + "/readyz")


def test_the_probe_of_a_container_finds_a_server_that_speaks_tls(store_url: str, trusted: Authority) -> None:
    settings = tls_settings(store_url, trusted, "probed")
    url = f"http://127.0.0.1:{settings['ESM_EVENT_SERVICE_PORT']}/readyz"
    probe = [sys.executable, str(ROOT / "deploy" / "probe.py"), url]
    with event_service(settings):
        deadline = time.monotonic() + 30
        while subprocess.run(probe, capture_output=True, check=False).returncode != 0:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert subprocess.run(probe, capture_output=True, check=False).returncode == 1


def test_a_key_of_another_certificate_is_one_line(trusted: Authority) -> None:
    certificate, _ = trusted.sign("one")
    _, key = trusted.sign("another")
    settings = Settings(tls_cert_file=certificate, tls_key_file=key)
    with pytest.raises(ConfigurationError, match="no certificate and its key: key values mismatch"):
        settings.server_context()


# Kafka


@pytest.fixture(scope="module")
def encrypted_broker(trusted: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a broker's listener that speaks TLS."""
    with secured_broker(tmp_path_factory.mktemp("broker"), trusted, protocol="SSL") as (_, address):
        yield address


def encrypted_bus(address: str, trusts: Authority) -> EventBusConfig:
    options = {"security.protocol": "SSL", "ssl.ca.location": str(trusts.certificate)}
    return EventBusConfig(
        kafka_bootstrap_servers=address,
        topic_prefix=f"tls-{uuid4().hex[:12]}",
        kafka_partitions=1,
        kafka_options=options,
    )


async def test_events_travel_over_kafka_encrypted(encrypted_broker: str, trusted: Authority) -> None:
    config, handler = encrypted_bus(encrypted_broker, trusted), InMemoryHandler(["user.migrated"])
    async with EventStore(use_memory=True) as store, EventBus(config, store=store) as bus:
        await bus.subscribe([], handler, consumer_group="encrypted")
        await bus.publish(UserMigratedEvent(user_id="u", username="u", source_data={}, target_data={}))
        await until(lambda: len(handler.events) == 1)


async def test_a_broker_that_is_not_to_be_trusted_gets_nothing(
    encrypted_broker: str, stranger: Authority
) -> None:
    from eventsourcing.transport.kafka_topics import KafkaTopics

    with pytest.raises(UnavailableError):
        await KafkaTopics(encrypted_bus(encrypted_broker, stranger)).partitions()
