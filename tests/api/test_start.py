"""A service that cannot start says why in one line, and leaves nothing behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from api import event_service
from tests.api.conftest import ROOT, Start, free_port


def test_a_port_in_use_is_one_line(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start("api.event_service", ESM_EVENT_SERVICE_PORT=str(port))
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == f"cannot listen on 127.0.0.1:{port}: Address already in use\n"


@pytest.fixture
def signals() -> Iterator[None]:
    """Signal handlers as they were."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"ESM_EVENT_SERVICE_PORT": "many"}, "ESM_EVENT_SERVICE_PORT"),
        ({"ESM_NO_SUCH_SETTING": "1"}, "ESM_NO_SUCH_SETTING"),
        ({"ESM_BIND_HOST": "0.0.0.0"}, "ESM_ALLOW_INSECURE_BIND"),
        ({"ESM_PLUGINS": "no_such_plugin"}, "no_such_plugin"),
        ({"DATABASE_URL": "postgresql://user:canary@127.0.0.1:1/none"}, "not available"),
    ],
)
def test_a_setting_that_does_not_work_is_one_line(
    monkeypatch: pytest.MonkeyPatch, service_database: str, settings: dict[str, str], word: str
) -> None:
    given = {"DATABASE_URL": service_database, "ESM_EVENT_SERVICE_PORT": str(free_port()), **settings}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as exit_of:
        event_service.main()
    line = exit_of.value.code
    assert isinstance(line, str)  # printed on stderr, with exit code 1
    assert word in line
    assert "\n" not in line
    assert "canary" not in line


def test_a_service_starts_without_what_only_jobs_and_upgrades_need() -> None:
    loaded = "import api.event_service, api.replay_service, sys; print(*sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, check=True, cwd=ROOT
    )
    modules = set(printed.stdout.split())
    assert "api.event_service" in modules
    assert modules.isdisjoint(
        {"dagster", "alembic", "sqlalchemy.orm", "polars", "pyarrow", "confluent_kafka", "jwt", "httpx2"}
    )
