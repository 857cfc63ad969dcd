"""`esm sequences` with the models of the system and of a plugin."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from eventsourcing import BaseEvent, EventStore
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.testing import a_migration
from tests import terminal

ROOT = Path(__file__).parents[2]

PLUGIN = """
from eventsourcing.process_models import ProcessModel, register_process, sequence, within

register_process(
    ProcessModel("order", sequence("order.placed", within("order.paid", hours=1)), aggregate_types=("order",))
)
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    (tmp_path / "team_orders.py").write_text(PLUGIN)
    return tmp_path


def esm(database_url: str, plugin: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    settings = {
        "DATABASE_URL": database_url,
        "ESM_DATA_DIR": str(plugin),
        "ESM_PLUGINS": "team_orders",
        "PYTHONPATH": f"{ROOT}:{plugin}",
    }
    return terminal.esm("sequences", *arguments, settings=settings, directory=ROOT)


def an_event(aggregate_id: str, event_type: str) -> BaseEvent:
    return BaseEvent(event_type=event_type, aggregate_id=aggregate_id, aggregate_type="order", data={})


async def test_the_models_and_what_broke_them(store_url: str, plugin: Path) -> None:
    async with EventStore(storage=PostgresStorage(store_url)) as store:
        await store.append_events(a_migration("good"))
        started, _, transformed, *_ = a_migration("bad")
        stored = await store.append_events([started, transformed])
        await store.append_events([an_event("o-1", "order.placed"), an_event("o-1", "order.sent")])
    listed = esm(store_url, plugin, "list", "--json")
    names = [json.loads(line)["name"] for line in listed.stdout.splitlines()]
    assert names == ["migration", "order", "straight-migration"]
    good = esm(store_url, plugin, "check", "migration", "--aggregate", "good")
    assert (good.returncode, "complete" in good.stdout) == (0, True)
    bad = esm(store_url, plugin, "check", "migration", "-a", "bad", "--json")
    violation = json.loads(bad.stdout)["violation"]
    assert (bad.returncode, violation["position"], violation["actual"]) == (
        1,
        stored[1].position,
        "data.transformed",
    )
    whole = esm(store_url, plugin, "check", "migration")
    assert whole.returncode == 1
    assert "2 subjects, 8 events, 1 broken" in whole.stdout
    orders = esm(store_url, plugin, "check", "order", "--json")
    assert orders.returncode == 1
    assert json.loads(orders.stdout)["expected"] == ["order.paid"]


def test_what_is_not_there_is_one_line(store_url: str, plugin: Path) -> None:
    for arguments in (("check", "nothing"), ("check", "migration", "-a", "nobody")):
        done = esm(store_url, plugin, *arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("esm: no ")
        assert len(done.stderr.splitlines()) == 1
