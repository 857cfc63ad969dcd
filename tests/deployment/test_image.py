"""The image's build, step by step as the Dockerfile has it, without an engine: what it installs, works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROVES = """
import api.event_service, api.replay_service, api.worker, pathlib, pipelines.definitions
from api.lanes import reconstructable_job
from eventsourcing.storage.schema import newest_version
from resources.dagster_home import workspace_file
assert pathlib.Path(api.__file__).is_relative_to({environment!r}), api.__file__
print(newest_version(), reconstructable_job("snapshot").job_name)
"""


@pytest.mark.timeout(300)
def test_what_the_build_installs_needs_nothing_of_the_checkout(tmp_path: Path) -> None:
    source, environment = tmp_path / "src", tmp_path / "app" / ".venv"
    source.mkdir()
    dockerfile = re.sub(r"--mount=\S+|^#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.M)
    text = dockerfile.replace("\\\n", " ").replace("/app/.venv", str(environment))
    text = text.replace("/wheel", str(tmp_path / "wheel"))
    given = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    given |= dict(re.findall(r"(UV_\w+)=(\S+)", text)) | {"UV_PYTHON": sys.executable}
    for line in text.splitlines():
        if line.startswith("COPY ") and line.split()[-1] != "/app/probe.py" and "--" not in line:
            *names, target = line.split()[1:]
            for name in names:
                place = source / target / Path(name).name if target == "./" else source / target
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                copy(ROOT / name, place)
        elif line.startswith("RUN ") and " uv " in line:
            command = line.removeprefix("RUN ")
            done = subprocess.run(
                command, shell=True, cwd=source, env=given, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
    shutil.rmtree(source)
    python = environment / "bin" / "python"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    proof = PROVES.format(environment=str(environment))
    done = subprocess.run(
        [python, "-c", proof], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == "snapshot"
    helped = subprocess.run([environment / "bin" / "esm", "--help"], cwd=tmp_path, env=clean, check=False)
    assert helped.returncode == 0
    installed = {path.name.partition("-")[0] for path in environment.glob("lib/*/site-packages/*.dist-info")}
    assert "pytest" not in installed, "what only developers need is not in the image"
