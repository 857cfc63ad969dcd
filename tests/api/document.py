"""A running service held against its own OpenAPI document by schemathesis, all phases."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx2
import pytest

from tests.api.conftest import ROOT
from tests.api.service_process import ServiceProcess

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance,negative_data_rejection"
)
PHASES = ("examples", "coverage", "fuzzing", "stateful")
ENDLESS = "/events/stream"
"""Its answer has no end, so it is tested elsewhere."""


def forms(short: int) -> pytest.MarkDecorator:
    """The test in its short form, of so many examples, and in the long one of 2,000."""
    long = [pytest.mark.chaos, pytest.mark.timeout(3600)]
    return pytest.mark.parametrize(
        "examples",
        [
            pytest.param(short, id="short", marks=pytest.mark.timeout(300)),
            pytest.param(2000, id="long", marks=long),
        ],
    )


def hold_against_document(service: ServiceProcess, directory: Path, *, examples: int) -> None:
    """Require that the service is up after all that schemathesis sends, and that no answer is a 5xx, has an
    undocumented status or another body.

    `examples` are sent at least, all in all; each operation gets its share. Progress and the counts of
    answers by phase and status are printed. One worker: with two threads CPython 3.11's parser miscounts its
    depth, and schemathesis ends with a SystemError (python/cpython#106905).
    """
    url = service.url
    paths = httpx2.get(f"{url}/openapi.json").json()["paths"]
    operations = sum(len(methods) for path, methods in paths.items() if path != ENDLESS)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "schemathesis.cli",
            "run",
            f"{url}/openapi.json",
            f"--phases={','.join(PHASES)}",
            f"--checks={CHECKS}",
            f"--max-examples={math.ceil(examples / operations)}",
            f"--exclude-path={ENDLESS}",
            "--workers=1",
            "--seed=7",
            "--request-timeout=70",
            "--generation-database=none",
            "--no-color",
            "--warnings=off",
            "--max-failures=5",
            "--continue-on-failure",
        ],
        check=False,
        cwd=directory,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            "SCHEMATHESIS_HOOKS": "tests.api.schemathesis_hooks",
        },
    )
    answers = Counter(json.loads((directory / "answers.json").read_text("utf-8")))
    print(*(f"{what}: {times}" for what, times in sorted(answers.items())), sep="\n")  # noqa: T201 - the report
    assert done.returncode == 0, "schemathesis says above what it found"
    assert answers.total() >= examples
    assert {what.partition(" ")[0] for what in answers} == set(PHASES)
    assert service.is_up()
