"""The Replay Service against its own OpenAPI document: schemathesis, its stateful phase among the others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eventsourcing import EventStore
from eventsourcing.testing import a_migration
from tests.api.conftest import Start, free_port
from tests.api.test_processes import ready

pytestmark = pytest.mark.asyncio(loop_scope="session")

PHASES = "examples,coverage,fuzzing,stateful"
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"

FORMS = [
    pytest.param(15, id="short", marks=pytest.mark.timeout(300)),
    pytest.param(2000, id="long", marks=[pytest.mark.chaos, pytest.mark.timeout(7200)]),
]


@pytest.mark.parametrize("examples", FORMS)
async def test_no_call_is_answered_otherwise_than_documented(
    start: Start, service_database: str, stored: EventStore, unique: str, tmp_path: Path, examples: int
) -> None:
    """No 5xx, and no status, media type or body that the document does not have. The stream never ends, so
    its tests are elsewhere."""
    await stored.append_events(a_migration(unique))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = start(
        "tests.api.inline_replay_service", DATABASE_URL=service_database, ESM_REPLAY_SERVICE_PORT=str(port)
    )
    await ready(url, process)
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{url}/openapi.json", "--no-color"]
    options = ["--phases", PHASES, "--checks", CHECKS, "--max-examples", str(examples), "--warnings", "off"]
    bounds = ["--request-timeout", "70", "--exclude-path", "/events/stream", "--continue-on-failure"]
    done = subprocess.run(  # noqa: ASYNC221 - the service is another process
        [*command, *options, *bounds],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    print(done.stdout[-3000:])  # noqa: T201 - the summary of the long form
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Stateful" in done.stdout
    assert process.poll() is None
