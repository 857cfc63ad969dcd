"""The guide to a migration by hand: its blocks run as they stand, and leave the target as it was."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guides" / "migrate.md").read_text("utf-8")


@pytest.mark.timeout(300)  # a dozen commands, each a process
def test_the_blocks_lead_from_the_plan_to_the_target_as_it_was(tmp_path: Path, database_url: str) -> None:
    script = "\n".join(re.findall(r"```bash\n(.*?)```", GUIDE, re.S))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ESM_DATA_DIR": str(tmp_path / "data"),
        "DATABASE_URL": database_url,
        "TMPDIR": str(tmp_path),
        "COLUMNS": "160",
    }
    done = subprocess.run(
        ["bash", "-euc", f"{script}\necho work=$work\nls $work"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    assert "Nothing stands in its way" in said
    assert "In quarantine: 2 records." in said
    retried = said.partition("2 records in ")[2]
    assert re.search(r"accounts +│ +6 │ +5 │", retried), "the mended record arrived"
    assert "the target is what was migrated" in said
    assert re.search(r"│ accounts │ +5 │ +0 │ +0 │", said), "the foreseen rollback"
    assert re.search(r"deleted from accounts +│ 5 ", said)
    with closing(sqlite3.connect(Path(said.partition("work=")[2].split()[0]) / "new.db")) as target:
        assert target.execute("SELECT count(*) FROM accounts").fetchone() == (0,)
    assert {"aside.csv", "report.html", "report.json"} <= {*said.split()}


def test_what_the_guide_quotes_is_what_is_said() -> None:
    quoted = re.findall(r"^\| `(.+?)` \| ", GUIDE, re.M)
    assert len(quoted) == 5
    files = [*ROOT.glob("pipelines/migration/*.py"), ROOT / "resources" / "migration_journal.py"]
    said = "".join(path.read_text("utf-8") for path in files)
    for line in quoted:
        assert max(line.split("'m-1'"), key=len).strip() in said
