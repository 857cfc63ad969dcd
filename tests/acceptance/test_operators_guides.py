"""The guides for operators: their blocks are run, their commands held against the files that they name."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from deploy.rehearse import load_compose
from tests.api.conftest import free_port
from tests.servers import NEWEST, server_of

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guides"
BIN = Path(sys.executable).parent


def blocks(guide: str, language: str = "bash") -> list[str]:
    text = (GUIDES / f"{guide}.md").read_text("utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def run(script: str, folder: Path, **settings: str) -> str:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), **settings}
    done = subprocess.run(
        ["bash", "-euc", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_guide_to_tls_ends_with_a_service_that_answers_encrypted(tmp_path: Path, store_url: str) -> None:
    script = "set -m\n" + "\n".join(blocks("tls"))
    port = str(free_port())
    assert '"status":"healthy"' in run(script, tmp_path, DATABASE_URL=store_url, ESM_EVENT_SERVICE_PORT=port)


def test_the_settings_of_the_guide_to_tls_are_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from eventsourcing import Settings

    for number, line in enumerate("\n".join(blocks("tls", "text")).split()):
        name, _, value = line.partition("=")
        if value.startswith("/"):
            value = str(tmp_path / str(number))
            Path(value).write_text("secret", "utf-8")
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DATABASE_URL", "postgresql://user@host/name")
    settings = Settings.load()
    assert "sslmode=verify-full" in str(settings.database_url)
    assert settings.kafka_options["sasl.password"] == "secret"


def test_the_guide_to_roles_lets_a_process_in_that_may_not_do_more(tmp_path: Path) -> None:
    with server_of(NEWEST) as server:
        address = "127.83.1.1"
        rules = "local all all trust\nhost all all 127.0.0.0/8 scram-sha-256\n"
        (server.data / "pg_hba.conf").write_text(rules)
        server.start(f"listen_addresses={address}", "fsync=off", "log_statement=all")
        names = {"DATABASE_URL": server.url(), "DATABASE_HOST": address, "DATABASE_NAME": "postgres"}
        admitting, using = blocks("roles")
        assert "event_service is admitted as a member of esm_writer." in run(admitting, tmp_path, **names)
        run(admitting, tmp_path, **names)  # another password: it is changed
        password = str(make_url((tmp_path / "event_database_url").read_text("utf-8").strip()).password)
        assert password not in (server.directory / "log").read_text("utf-8")
        run(f"unset DATABASE_URL; {using}", tmp_path, **names)
        with pytest.raises(AssertionError, match="owns the event database"):
            run("DATABASE_URL_FILE=event_database_url esm db admit event_database_url", tmp_path)


def test_the_guide_to_the_doctor_names_every_check() -> None:
    text = (GUIDES / "doctor.md").read_text("utf-8")
    documented = set(re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (.*?) \|", text, re.M))))
    files = (ROOT / "api" / "doctor.py", ROOT / "eventsourcing" / "diagnosis.py")
    code = "".join(path.read_text("utf-8") for path in files)
    named = set(re.findall(r'Finding\(\s*"([^"]+)"', code)) | {"event-service", "replay-service"}
    assert {name.removesuffix(" …") for name in documented} == named | {"read-model", "group", "relay"}


@pytest.mark.parametrize("guide", ["compose", "doctor"])
def test_the_compose_commands_name_services_containers_and_files_that_are_there(guide: str) -> None:
    services = load_compose(ROOT / "docker-compose.yml")["services"]
    containers = {service.get("container_name") for service in services.values()}
    lines = "\n".join(blocks(guide) + blocks(guide, "text")).splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("docker")]
    assert len(commands) > 3
    for command in commands:
        if command[:2] == ["docker", "exec"]:
            assert command[3] in containers
            continue
        rest = command[1:]
        if rest[0] == "-f":
            assert (ROOT / rest[1]).exists()
            rest = rest[2:]
        verb, *words = rest
        named = words[:1] if verb == "exec" else [word.partition(":")[0] for word in words]
        for word in named:
            if not word.startswith("-") and "." not in word:
                assert word in services, command


LINKS: list[tuple[Path, str]] = [
    (page, link)
    for page in sorted([*GUIDES.glob("*.md"), ROOT / "docs/metrics.md", ROOT / "docs/settings.md"])
    for link in re.findall(r"\]\(((?!http)[^)#]+)", page.read_text("utf-8"))
]


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_every_link_of_a_guide_leads_somewhere(page: Path, link: str) -> None:
    assert (page.parent / link).exists()
