"""A team's event through its life, as `esm events schemas` sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PLUGIN = '''
from eventsourcing import EventPayload, TypedEvent, register_event, upcast

@register_event
class SeatBooked(TypedEvent, event_type="seat.booked", aggregate_type="seat"{version}):
    """A seat was taken."""

    class Payload(EventPayload):
        {fields}
{upcasts}
'''
UPCAST = """
    @upcast(1)
    def _named(data):
        return {"name": data.pop("passenger"), **data}
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Write the plugin as the team has it now, and run `esm events schemas … accepted`."""

    def esm(command: str, fields: str, *, version: str = "", upcasts: str = "") -> object:
        plugin = PLUGIN.format(version=version, fields=fields, upcasts=upcasts)
        (tmp_path / "team_events.py").write_text(plugin, "utf-8")
        return subprocess.run(
            [sys.executable, "-B", "-m", "api.cli", "events", "schemas", command, str(tmp_path / "accepted")],
            env={**os.environ, "ESM_PLUGINS": "team_events", "PYTHONPATH": str(tmp_path), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )

    return esm  # type: ignore[return-value]  # a callable with keywords


def test_a_breaking_change_fails_until_it_is_a_new_version(run: Run, tmp_path: Path) -> None:
    accepted = tmp_path / "accepted"
    first = run("accept", "passenger: str")
    assert first.returncode == 0, first.stderr
    published = (accepted / "seat.booked.v1.json").read_text()
    files = sorted(accepted.iterdir())

    grown = run("check", "passenger: str; row: int = 1")
    assert grown.returncode == 0, grown.stderr
    assert "compatible: seat.booked: data.row is new and optional" in grown.stdout
    assert "accept" in grown.stdout

    for command in ("check", "accept"):
        broken = run(command, "name: str")
        assert broken.returncode == 1
        assert (
            "breaking: seat.booked: data.passenger was removed; "
            "declare schema_version=2 with an @upcast(1)" in broken.stderr
        )
        assert "Traceback" not in broken.stderr
    assert sorted(accepted.iterdir()) == files
    assert (accepted / "seat.booked.v1.json").read_text() == published

    cured = run("accept", "name: str", version=", schema_version=2", upcasts=UPCAST)
    assert cured.returncode == 0, cured.stderr
    assert (accepted / "seat.booked.v1.json").read_text() == published
    assert '"name"' in (accepted / "seat.booked.v2.json").read_text()
    checked = run("check", "name: str", version=", schema_version=2", upcasts=UPCAST)
    assert checked.stdout.strip() == "No change."


def test_a_version_without_its_upcast_and_a_damaged_file_are_one_clear_line(run: Run, tmp_path: Path) -> None:
    refused = run("check", "name: str", version=", schema_version=2")
    assert refused.returncode == 1
    [line] = refused.stderr.splitlines()
    assert "team_events" in line
    assert "has no @upcast(1), the way from version 1 to 2" in line

    run("export", "passenger: str")
    (tmp_path / "accepted" / "seat.booked.v1.json").write_text("{")
    damaged = run("check", "passenger: str")
    assert damaged.returncode == 1
    assert "seat.booked.v1.json is not JSON" in damaged.stderr
