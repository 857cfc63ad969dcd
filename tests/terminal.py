"""`esm` as its user meets it: a process of its own, run to its end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ESM = (sys.executable, "-m", "api.cli")
"""How the command begins."""


def esm(
    *arguments: object, settings: Mapping[str, str], directory: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command with these settings beside what stands in the environment, on a wide terminal."""
    return subprocess.run(
        [*ESM, *map(str, arguments)],
        env={**os.environ, "COLUMNS": "250", **settings},
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line with which a command was refused."""
    assert done.returncode == 1, done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("esm: ")
    return line
