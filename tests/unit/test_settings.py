"""Settings: one tree from the environment; a mistake fails at start with one line that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from eventsourcing import ConfigurationError, EventBusConfig, EventReplayConfig, EventStoreConfig, Settings
from resources.dagster_home import environment_of


def refused() -> str:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_an_environment_everything_has_its_default() -> None:
    settings = Settings.load()
    assert settings.database_url is None
    assert settings.kafka_bootstrap_servers is None
    assert settings.log_level == "INFO"
    assert (settings.event_service_port, settings.replay_service_port) == (8006, 8007)
    assert settings.bind_host == "127.0.0.1"


def test_the_three_plain_names_and_the_prefixed_ones_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://somewhere/db")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "broker:9092")
    monkeypatch.setenv("LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("ESM_TOPIC_PREFIX", "moving")
    monkeypatch.setenv("ESM_POOL_SIZE", "3")
    settings = Settings.load()
    assert settings.store_config() == EventStoreConfig(database_url="postgresql://somewhere/db", pool_size=3)
    bus = settings.bus_config()
    assert (bus.kafka_bootstrap_servers, bus.topic_prefix) == ("broker:9092", "moving")
    assert settings.log_level == "DEBUG"


def test_overrides_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESM_POOL_SIZE", "3")
    assert Settings.load(pool_size=4).pool_size == 4


@pytest.mark.parametrize(
    "name", ["ESM_POOLSIZE", "ESM_DATABASE_URL", "ESM_LOG_LEVEL", "ESM_", "ESM_POOL_SIZE_FILE"]
)
def test_an_unknown_name_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    assert refused().startswith(f"{name} is not a setting")


def test_names_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOL_SIZE", "not ours")
    monkeypatch.setenv("HMAC_SECRET", "not ours")
    settings = Settings.load()
    assert settings.pool_size == EventStoreConfig().pool_size
    assert settings.hmac_secret is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ESM_POOL_SIZE", "many"),
        ("ESM_POOL_SIZE", "0"),
        ("ESM_EVENT_SERVICE_PORT", "70000"),
        ("LOG_LEVEL", "LOUD"),
        ("ESM_ALLOW_INSECURE_BIND", "perhaps"),
    ],
)
def test_a_wrong_value_is_named_and_not_echoed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    message = refused()
    assert message.startswith(f"{name}: ")
    assert value not in message or len(value) == 1


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("DATABASE_URL", "database_url"),
        ("ESM_DAGSTER_DATABASE_URL", "dagster_database_url"),
        ("ESM_TARGET_DATABASE_URL", "target_database_url"),
        ("ESM_HMAC_SECRET", "hmac_secret"),
    ],
)
def test_a_secret_may_come_from_a_file_but_not_from_two_places(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, field: str
) -> None:
    file = tmp_path / "secret"
    file.write_text("postgresql://user:pw@host/db\n", "utf-8")
    monkeypatch.setenv(f"{name}_FILE", str(file))
    assert getattr(Settings.load(), field) == "postgresql://user:pw@host/db"
    monkeypatch.setenv(name, "another")
    assert refused() == f"{name} and {name}_FILE are both set"


def test_a_secret_file_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ESM_HMAC_SECRET_FILE", str(tmp_path / "nothing"))
    assert refused() == f"ESM_HMAC_SECRET_FILE: No such file or directory: {tmp_path / 'nothing'}"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.org"])
def test_an_open_door_is_refused_until_it_is_accepted(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("ESM_BIND_HOST", host)
    message = refused()
    assert f"ESM_BIND_HOST={host}" in message
    assert "ESM_ALLOW_INSECURE_BIND" in message
    monkeypatch.setenv("ESM_ALLOW_INSECURE_BIND", "true")
    assert Settings.load().bind_host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_permission(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("ESM_BIND_HOST", host)
    assert Settings.load().bind_host == host


@pytest.mark.parametrize("config", [EventStoreConfig, EventBusConfig, EventReplayConfig])
def test_a_config_takes_no_unknown_field(config: type[EventStoreConfig]) -> None:
    with pytest.raises(ValueError, match="Extra inputs"):
        config(surprise=1)  # type: ignore[call-arg]  # the unknown field is the case


def test_every_setting_is_described_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "settings.md").read_text("utf-8")
    plain = {"database_url": "DATABASE_URL", "kafka_bootstrap_servers": "KAFKA_BOOTSTRAP_SERVERS"}
    names = {plain.get(field, f"ESM_{field.upper()}") for field in Settings.model_fields} - {"ESM_LOG_LEVEL"}
    assert {name for name in names if name not in text} == set()


SASL = {
    "security.protocol": "SASL_SSL",
    "sasl.mechanisms": "PLAIN",
    "sasl.username": "me",
    "sasl.password": "a=b",
}


@pytest.mark.parametrize("options", [{}, SASL])
def test_a_child_process_loads_the_settings_of_its_parent(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, str], tmp_path: Path
) -> None:
    settings = Settings(
        database_url="postgresql+asyncpg://me@here/events",
        kafka_options=options,
        connections_file=tmp_path / "connections.yaml",
        allow_insecure_bind=True,
    )
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings.load() == settings
