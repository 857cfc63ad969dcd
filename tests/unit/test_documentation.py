"""What the documents say about the code is held against the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from eventsourcing.config import Settings

ROOT = Path(__file__).parents[2]
PLAIN = {"DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS", "LOG_LEVEL"}


def test_every_setting_is_documented_and_no_other() -> None:
    text = (ROOT / "docs" / "settings.md").read_text("utf-8")
    documented = set(re.findall(r"^\| `(\w+)`", text, flags=re.MULTILINE))
    fields = {name.upper() for name in Settings.model_fields}

    assert documented == {name if name in PLAIN else f"ESM_{name}" for name in fields}


@pytest.mark.parametrize(
    "block", re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
)
def test_every_python_block_of_the_readme_runs(block: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "1 events, 100.0 %" in done.stdout


@pytest.mark.parametrize(
    ("guide", "shown", "prints"),
    [
        (
            "change-an-event",
            "print(SeatBooked.lineage.upcast({'passenger': 'Ada Lovelace'}, 1))",
            ["{'given_name': 'Ada', 'family_name': 'Lovelace'}"],
        ),
        ("backfill", "", ["1", "0"]),
        ("operate-the-bus", "", ["[]", "{}"]),
    ],
)
def test_the_python_block_of_a_guide_does_what_it_says(guide: str, shown: str, prints: list[str]) -> None:
    text = (ROOT / "docs" / "guides" / f"{guide}.md").read_text("utf-8")
    block = "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))

    done = subprocess.run([sys.executable, "-c", block + shown], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == prints


@pytest.mark.parametrize(
    "link", re.findall(r"\]\(((?!http)[^)]+)\)", (ROOT / "README.md").read_text("utf-8"))
)
def test_every_link_of_the_readme_leads_somewhere(link: str) -> None:
    assert (ROOT / link.partition("#")[0]).exists()
