"""The guide to exposing the services: its commands run as they stand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.api.conftest import ROOT
from tests.api.service_process import running

GUIDE = ROOT / "docs" / "guides" / "exposing.md"


@pytest.mark.timeout(240)
def test_the_commands_of_the_guide_run_as_they_stand(new_database: Callable[[], str]) -> None:
    url = new_database()
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE.read_text("utf-8"), re.S)
    assert len(blocks) == 3
    settings = dict(re.findall(r"^export (\w+)=(.*)$", blocks[0], re.M))
    assert settings["ESM_AUTHENTICATION"] == "on"
    with running(url, **settings) as service:
        script = "\n".join(["set -euo pipefail", *blocks]).replace(":8006", f":{service.port}")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "DATABASE_URL": url, "PATH": path}
        done = subprocess.run(
            ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False, cwd=ROOT
        )
    assert done.returncode == 0, done.stdout + done.stderr
    stranger, end = json.JSONDecoder().raw_decode(done.stdout)
    known, _ = json.JSONDecoder().raw_decode(done.stdout[end:].lstrip())
    assert stranger["checks"]["store"] == {"status": "up"}
    assert "position" in known["checks"]["store"]
