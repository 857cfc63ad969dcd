"""What Kafka's clients are configured with: everything passes through, what guarantees stand on does not."""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path

import pytest

from eventsourcing import ConfigurationError, EventBus, EventBusConfig, Settings
from eventsourcing.transport.kafka_options import (
    RESERVED,
    admin_options,
    check_options,
    consumer_options,
    producer_options,
)

SCRAM = {
    "security.protocol": "SASL_SSL",
    "sasl.mechanisms": "SCRAM-SHA-512",
    "sasl.username": "relay",
    "sasl.password": "hunter22",
}
OIDC = {
    "security.protocol": "SASL_SSL",
    "sasl.mechanisms": "OAUTHBEARER",
    "sasl.oauthbearer.method": "oidc",
    "sasl.oauthbearer.client.id": "relay",
    "sasl.oauthbearer.client.secret": "hunter22",
    "sasl.oauthbearer.token.endpoint.url": "https://127.0.0.1:9/token",
    "sasl.oauthbearer.scope": "kafka",
}


def bus(**options: str | int | float | bool) -> EventBusConfig:
    return EventBusConfig(kafka_bootstrap_servers="127.0.0.1:9", kafka_options=options)


@pytest.mark.parametrize("options", [SCRAM, OIDC], ids=["SASL_SSL", "OIDC"])
def test_security_passes_through_to_every_client(options: dict[str, str]) -> None:
    config = bus(**options)

    check_options(config)

    for made in (producer_options(config), consumer_options(config, "readers"), admin_options(config)):
        assert options.items() <= made.items()


def test_mutual_tls_passes_through(certificate: dict[str, str]) -> None:
    options = {"security.protocol": "SSL", **certificate}

    check_options(bus(**options))

    assert options.items() <= producer_options(bus(**options)).items()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A certificate that signed itself, as authority and as client."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "client.pem", folder / "client.key"
    make_certificate(certificate, key)
    return {
        "ssl.ca.location": str(certificate),
        "ssl.certificate.location": str(certificate),
        "ssl.key.location": str(key),
    }


def make_certificate(certificate: Path, key: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    subprocess.run(
        [
            openssl,
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=relay",
            "-days",
            "1",
            "-keyout",
            str(key),
            "-out",
            str(certificate),
        ],
        check=True,
        capture_output=True,
    )


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_what_a_guarantee_stands_on_is_refused_with_its_reason(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} is reserved: {RESERVED[name]}"):
        check_options(bus(**{name: "x"}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"linger.millis": 5}, 'No such configuration property: "linger.millis"'),
        ({"compression.type": "zip"}, "compression.codec"),
        ({"acks": "1"}, "`acks` must be set to `all`"),
        ({"security.protocol": "SSL", "ssl.ca.location": "/nowhere"}, "ssl.ca.location failed"),
        ({"group.protocol": "consumer", "session.timeout.ms": 6000}, "session.timeout.ms"),
    ],
)
async def test_a_wrong_option_is_refused_at_start_in_one_line(
    options: dict[str, str | int | float | bool], said: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await EventBus(bus(**options)).start()

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_secret_gets_into_a_message_or_a_log(caplog: pytest.LogCaptureFixture) -> None:
    config = bus(**{"security.protocol": "SSL", "ssl.key.pem": "hunter22", "ssl.key.password": "hunter22"})
    with caplog.at_level(logging.DEBUG), pytest.raises(ConfigurationError) as caught:
        check_options(config)

    assert "hunter22" not in str(caught.value) + caplog.text + repr(config)


def test_ours_win_over_the_users_and_the_users_over_the_defaults() -> None:
    config = bus(**{"linger.ms": 50, "session.timeout.ms": 7000})

    assert producer_options(config)["linger.ms"] == 50
    assert producer_options(config)["partitioner"] == "murmur2_random"
    assert producer_options(config)["enable.idempotence"] is True
    assert consumer_options(config, "readers")["session.timeout.ms"] == 7000
    assert consumer_options(config, "readers")["partition.assignment.strategy"] == "range"


def test_a_group_that_the_broker_assigns_keeps_the_range() -> None:
    made = consumer_options(bus(**{"group.protocol": "consumer"}), "readers")

    assert made["group.remote.assignor"] == "range"
    assert "partition.assignment.strategy" not in made


def test_options_come_from_the_environment_and_secrets_from_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines, secret = tmp_path / "kafka.properties", tmp_path / "password"
    lines.write_text("# as for kcat\nsecurity.protocol=SASL_SSL\nlog_level = 6\nssl.key.password=a=b\n\n")
    secret.write_text("hunter22\n")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "broker:9092")
    monkeypatch.setenv("ESM_KAFKA_OPTIONS_FILE", str(lines))
    monkeypatch.setenv("ESM_KAFKA_OPTION_SASL_MECHANISMS", "PLAIN")
    monkeypatch.setenv("ESM_KAFKA_OPTION_SASL_PASSWORD_FILE", str(secret))
    monkeypatch.setenv("ESM_KAFKA_PROVISIONING", "verify")
    monkeypatch.setenv("ESM_KAFKA_PARTITIONS", "12")

    settings = Settings.load()
    config = settings.bus_config()

    assert config.kafka_options == {
        "security.protocol": "SASL_SSL",
        "log_level": "6",
        "ssl.key.password": "a=b",
        "sasl.mechanisms": "PLAIN",
        "sasl.password": "hunter22",
    }
    assert (config.kafka_provisioning, config.kafka_partitions) == ("verify", 12)
    assert "hunter22" not in repr(settings) + repr(config)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ESM_KAFKA_OPTIONS": "linger.ms"}, "ESM_KAFKA_OPTIONS: line 1 is not name=value"),
        ({"ESM_KAFKA_PROVISIONING": "maybe"}, "ESM_KAFKA_PROVISIONING"),
        (
            {"ESM_KAFKA_OPTION_SASL_PASSWORD": "x", "ESM_KAFKA_OPTION_SASL_PASSWORD_FILE": "y"},
            "ESM_KAFKA_OPTION_SASL_PASSWORD and ESM_KAFKA_OPTION_SASL_PASSWORD_FILE are both set",
        ),
        (
            {"ESM_KAFKA_OPTION_SASL_PASSWORD_FILE": "/nowhere"},
            "ESM_KAFKA_OPTION_SASL_PASSWORD_FILE: No such file",
        ),
    ],
)
def test_a_mistake_in_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(ConfigurationError) as caught:
        Settings.load()

    assert said in str(caught.value)
