"""The Event Service keeps to its OpenAPI document: schemathesis, all phases, stateful."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.api.conftest import ROOT
from tests.api.service_process import running

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance,negative_data_rejection"
)


def hold_against_document(url: str, directory: Path, *, examples: int) -> None:
    """Require that nothing schemathesis sends gets a 5xx, an undocumented status or another content type."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "schemathesis.cli",
            "run",
            f"{url}/openapi.json",
            "--phases=examples,coverage,fuzzing,stateful",
            f"--checks={CHECKS}",
            f"--max-examples={examples}",
            "--exclude-path-regex=/migrations$|quarantine/retry|/resume|/verify|/rollback",
            "--workers=2",
            "--seed=7",
            "--request-timeout=60",
            "--generation-database=none",
            "--no-color",
            "--warnings=off",
            "--max-failures=5",
            "--continue-on-failure",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.api.schemathesis_hooks"},
    )
    print(done.stdout[-6000:])  # noqa: T201 - the report, with `pytest -s` and in a failure
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.timeout(300)
def test_the_event_service_keeps_to_its_document(new_database: Callable[[], str], tmp_path: Path) -> None:
    with running(new_database()) as service:
        hold_against_document(service.url, tmp_path, examples=4)
        assert service.is_up()


@pytest.mark.chaos
@pytest.mark.timeout(5400)
def test_the_event_service_keeps_to_its_document_for_long(
    new_database: Callable[[], str], tmp_path: Path
) -> None:
    with running(new_database()) as service:
        hold_against_document(service.url, tmp_path, examples=2000)
        assert service.is_up()
