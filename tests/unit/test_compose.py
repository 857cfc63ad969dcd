"""The Compose files of Kafka and the event database: well formed, and with the names that people type."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy.engine import make_url

from eventsourcing import Settings

ROOT = Path(__file__).parents[2]
KAFKA, ZOOKEEPER = "docker-compose.kafka.yml", "docker-compose.zookeeper.yml"


def loaded(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / name).read_text("utf-8"))
    return content


@pytest.fixture
def services() -> dict[str, Any]:
    found: dict[str, Any] = loaded(KAFKA)["services"]
    return found


def valid(*paths: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    return subprocess.run([*command, *map(str, paths)], capture_output=True, text=True, check=False)


def test_the_files_follow_the_compose_specification() -> None:
    done = valid(ROOT / KAFKA, ROOT / ZOOKEEPER)
    assert done.returncode == 0, done.stdout + done.stderr


def test_planted_an_unknown_key_is_found(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yml"
    wrong.write_text((ROOT / KAFKA).read_text("utf-8").replace("healthcheck:", "healthchek:", 1), "utf-8")
    assert valid(wrong).returncode != 0


def test_containers_and_services_have_the_names_that_commands_use(services: dict[str, Any]) -> None:
    assert services["kafka"]["container_name"] == "migration-kafka"
    assert services["event-store-db"]["container_name"] == "migration-event-store-db"
    assert {"kafka", "kafka-ui", "event-store-db", "schema-registry"} == set(services)
    assert [name for name, service in services.items() if "profiles" in service] == ["schema-registry"]


def test_kafka_is_reached_by_one_name_inside_and_by_another_outside(services: dict[str, Any]) -> None:
    environment = services["kafka"]["environment"]
    assert environment["KAFKA_ADVERTISED_LISTENERS"] == "INTERNAL://kafka:29092,EXTERNAL://localhost:9092"
    assert environment["KAFKA_PROCESS_ROLES"] == "broker,controller"
    assert services["kafka-ui"]["environment"]["KAFKA_CLUSTERS_0_BOOTSTRAPSERVERS"] == "kafka:29092"
    assert "/cp-kafka:" in services["kafka"]["image"], "the image that has kafka-topics on PATH"


def test_the_event_database_is_the_one_of_the_published_url(services: dict[str, Any]) -> None:
    url = make_url("postgresql+asyncpg://event_user:event_password@event-store-db:5432/event_store")
    environment = services["event-store-db"]["environment"]
    assert url.host in services
    assert (url.username, url.password, url.database) == (
        environment["POSTGRES_USER"],
        environment["POSTGRES_PASSWORD"],
        environment["POSTGRES_DB"],
    )


def test_the_commands_of_the_guide_name_files_services_and_containers_that_are_there(
    services: dict[str, Any],
) -> None:
    guide = (ROOT / "docs" / "guides" / "operate-the-bus.md").read_text("utf-8")
    commands = re.findall(r"^docker.*$", guide, re.M)
    containers = {service["container_name"] for service in services.values()}
    assert len(commands) == 5
    for command in map(shlex.split, commands):
        if command[0] == "docker-compose":
            assert command[command.index("-f") + 1] == KAFKA
            assert set(command[4:]) <= {"-d", *services}, command
        else:
            assert command[3] in containers
    shown = set(re.findall(r"localhost:\d+|kafka:\d+", guide))
    ours = f"localhost:{Settings().event_service_port}"
    assert shown == {"localhost:8080", "localhost:9092", "kafka:29092", ours}


@pytest.mark.parametrize("file", [KAFKA, ZOOKEEPER])
def test_everything_is_published_on_loopback_and_has_a_health_check(file: str) -> None:
    both = {**loaded(ZOOKEEPER)["services"], **loaded(KAFKA)["services"]}
    for name, service in loaded(file)["services"].items():
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert both[name]["healthcheck"]["test"], name
        assert ":latest" not in service["image"], name
        for other, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}, f"{name} on {other}"
            assert other in both


def test_the_ports_are_the_published_ones(services: dict[str, Any]) -> None:
    ports = {name: service["ports"] for name, service in services.items()}
    assert ports["kafka"] == ["127.0.0.1:9092:9092"]
    assert ports["kafka-ui"] == ["127.0.0.1:8080:8080"]


def test_the_zookeeper_file_takes_every_kraft_setting_away(services: dict[str, Any]) -> None:
    kraft = {
        name
        for name in services["kafka"]["environment"]
        if any(part in name for part in ("CLUSTER_ID", "NODE_ID", "ROLES", "CONTROLLER", "SHARE"))
    }
    kafka = loaded(ZOOKEEPER)["services"]["kafka"]
    assert {name for name, value in kafka["environment"].items() if value is None} == kraft
    assert kafka["environment"]["KAFKA_ZOOKEEPER_CONNECT"] == "zookeeper:2181"
    assert "CONTROLLER" not in str([value for value in kafka["environment"].values() if value])
    (volume,) = kafka["volumes"]
    assert volume.partition(":")[2] == services["kafka"]["volumes"][0].partition(":")[2]
    assert volume != services["kafka"]["volumes"][0]
