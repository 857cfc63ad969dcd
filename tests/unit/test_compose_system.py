"""The Compose file of the whole system, and the image: well formed, bounded, and with published names."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import AliasChoices
from sqlalchemy.engine import make_url

from deploy.rehearse import load_compose
from eventsourcing.config import Settings
from tests.unit.test_compose import valid

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
OURS = {
    "migrate", "event-service", "replay-service", "worker", "dagster-webserver", "dagster-daemon",
    "dagster-code-server",
}  # fmt: skip
PUBLISHED = {"event-service": "8006", "replay-service": "8007", "dagster-webserver": "3000"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return load_compose(COMPOSE)


@pytest.fixture(scope="module")
def own(compose: dict[str, Any]) -> dict[str, Any]:
    """The services that are our image."""
    return {name: service for name, service in compose["services"].items() if "build" in service}


def test_the_file_follows_the_compose_specification() -> None:
    done = valid(COMPOSE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_services_have_the_published_names_and_kafkas_file_is_part_of_it(
    compose: dict[str, Any], own: dict[str, Any]
) -> None:
    assert set(own) == OURS
    assert {"kafka", "kafka-ui", "event-store-db"} <= set(compose["services"])


def test_everything_is_published_on_loopback_under_its_published_port(own: dict[str, Any]) -> None:
    ports = {name: service["ports"] for name, service in own.items() if "ports" in service}
    assert ports == {name: [f"127.0.0.1:{port}:{port}"] for name, port in PUBLISHED.items()}


def test_the_published_command_brings_the_worker_and_waits_for_the_schema(own: dict[str, Any]) -> None:
    for name in ("event-service", "replay-service"):
        assert own[name]["depends_on"]["worker"] == {"condition": "service_started"}
    for name in OURS - {"migrate"}:
        needed = own[name]["depends_on"]["migrate"]
        assert needed == {"condition": "service_completed_successfully"}, name
    assert own["worker"]["depends_on"]["kafka"] == {"condition": "service_started"}, "Kafka may be away"


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_container_is_bounded(own: dict[str, Any], name: str) -> None:
    service = own[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert service["mem_limit"]
    assert service["restart"] == ("no" if name == "migrate" else "unless-stopped")
    assert int(service["stop_grace_period"].removesuffix("s")) > 10
    assert [volume.partition(":")[2] for volume in service["volumes"]] == ["/var/lib/esm"]
    if name != "migrate":
        assert service["healthcheck"]["test"][0] == "CMD", "no shell is needed"


def test_every_setting_is_one_and_no_secret_stands_in_the_file(
    compose: dict[str, Any], own: dict[str, Any]
) -> None:
    known = {
        name for field in Settings.model_fields for name in (_variable(field), f"{_variable(field)}_FILE")
    }
    for name, service in own.items():
        assert set(service["environment"]) <= known, name
        for value in map(str, service["environment"].values()):
            if value.startswith("/run/secrets/"):
                assert value.removeprefix("/run/secrets/") in service["secrets"], name
    text = COMPOSE.read_text("utf-8")
    for secret in compose["secrets"].values():
        content = (ROOT / secret["file"]).read_text("utf-8").strip()
        password = make_url(content).password if "://" in content else content
        assert str(password) not in text


def _variable(field: str) -> str:
    alias = Settings.model_fields[field].validation_alias
    return str(alias.choices[-1]) if isinstance(alias, AliasChoices) else f"ESM_{field.upper()}"


def test_the_owners_password_is_given_to_the_migration_alone(own: dict[str, Any]) -> None:
    holders = [name for name, service in own.items() if "owner_database_url" in service["secrets"]]
    assert holders == ["migrate"]


def test_the_owner_is_the_user_that_the_database_image_makes(compose: dict[str, Any]) -> None:
    url = make_url((ROOT / "deploy/secrets/owner_database_url").read_text("utf-8").strip())
    made = compose["services"]["event-store-db"]["environment"]
    assert (url.username, url.password, url.database, url.host) == (
        made["POSTGRES_USER"],
        made["POSTGRES_PASSWORD"],
        made["POSTGRES_DB"],
        "event-store-db",
    )


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_planted_a_bad_instruction_is_found(tmp_path: Path) -> None:
    wrong = tmp_path / "Dockerfile"
    wrong.write_text((ROOT / "Dockerfile").read_text("utf-8") + "\nRUN cd /tmp && sudo ls\n", "utf-8")
    hadolint = Path(sys.executable).parent / "hadolint"
    assert subprocess.run([hadolint, wrong], capture_output=True, check=False).returncode != 0


def test_everything_that_the_image_copies_is_let_in_and_nothing_secret() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.M)
        for source in line.replace("--chown=esm:esm ", "").split()[:-1]
    }
    allowed = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text("utf-8"), re.M)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(source == entry or source.startswith(f"{entry}/") for entry in allowed), source
    assert (ROOT / ".dockerignore").read_text("utf-8").splitlines()[1] == "*", "what is not named stays out"
    assert not any(entry.startswith("deploy/secrets") for entry in allowed)
    assert re.search(r"^USER 10001:10001$", dockerfile, re.M)
    assert "--locked" in dockerfile


def test_every_secret_is_used_and_every_used_one_is_there(compose: dict[str, Any]) -> None:
    files = {Path(secret["file"]).name for secret in compose["secrets"].values()}
    found = {path.name for path in (ROOT / "deploy" / "secrets").iterdir()} - {"README.md"}
    assert files == found
