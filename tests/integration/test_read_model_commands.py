"""`esm read-models` and `esm snapshots` as an operator uses them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from eventsourcing import EventStore
from eventsourcing.readmodels import USER_MIGRATIONS_MODEL
from eventsourcing.snapshots import SNAPSHOTS
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.testing import a_migration
from tests import terminal

Esm = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def esm(store_url: str, tmp_path: Path) -> Esm:
    """Run `esm` to its end."""
    return partial(terminal.esm, settings={"DATABASE_URL": store_url, "ESM_DATA_DIR": str(tmp_path)})


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


async def test_a_wrong_read_model_is_found_rebuilt_and_switched(esm: Esm, store_url: str) -> None:
    async with EventStore(storage=PostgresStorage(store_url)) as store:
        await store.append_events(a_migration("m-1", users=5))
        await USER_MIGRATIONS_MODEL.catch_up(store.storage)
        async with store.storage.transaction() as transaction:
            await transaction.put(USER_MIGRATIONS_MODEL.table, "user-m-1-2", {"username": "wrong"})

    refused = esm("read-models", "switch", "user-migrations")
    assert (refused.returncode, refused.stderr.strip()) == (
        1,
        "esm: read model 'user-migrations' is not rebuilt",
    )
    told = esm("read-models", "rebuild", "user-migrations")
    assert told.returncode == 0, told.stderr
    assert "4 rows as live, 1 changed, 0 gone, 0 new" in told.stdout
    assert "user-m-1-2" in told.stdout
    (row,) = lines(esm("read-models", "differences", "user-migrations"))
    assert (row["kind"], row["old"], row["new"]["username"]) == ("changed", {"username": "wrong"}, "user2")
    (switched,) = lines(esm("read-models", "switch", "user-migrations", "--json"))
    assert (switched["live"]["behind"], switched["beside"]["state"]) == (0, "previous")
    listed = {row["name"]: row for row in lines(esm("read-models", "list", "--json"))}
    assert listed["user-migrations"] == switched
    assert "user-migrations.v1.2" in esm("read-models", "list").stdout
    assert "no read model 'nobody'" in esm("read-models", "rebuild", "nobody").stderr

    then = esm("read-models", "at", "migration-statistics", "--position", "3", "--key", "m-1")
    (state,) = lines(then)
    assert (state["state"]["status"], state["state"]["user_count"]) == ("started", 0)
    assert len(lines(esm("read-models", "at", "user-migrations", "--position", "6", "-n", "10"))) == 2
    assert "say when" in esm("read-models", "at", "user-migrations").stderr


async def test_snapshots_are_taken_listed_and_verified(esm: Esm, store_url: str) -> None:
    async with EventStore(storage=PostgresStorage(store_url)) as store:
        await store.append_events(a_migration("m-1", users=5))
    (taken,) = lines(esm("snapshots", "create", "m-1"))
    assert (taken["version"], taken["state"]["user_count"]) == (6, 5)
    (listed,) = lines(esm("snapshots", "list", "--json"))
    assert (listed["aggregate_id"], listed["state_hash"], listed["is_stale"]) == (
        "m-1",
        taken["state_hash"],
        False,
    )
    (good,) = lines(esm("snapshots", "verify", "m-1", "--json"))
    assert (good["is_valid"], good["fresh_hash"]) == (True, taken["state_hash"])
    async with (
        EventStore(storage=PostgresStorage(store_url)) as store,
        store.storage.transaction() as transaction,
    ):
        ((key, row),) = await transaction.scan(SNAPSHOTS)
        row["state"]["user_count"] = 6
        await transaction.put(SNAPSHOTS, key, row)
    changed = esm("snapshots", "verify", "m-1")
    assert changed.returncode == 1
    assert "user_count" in changed.stdout
    assert "no snapshot 'nobody'" in esm("snapshots", "verify", "nobody").stderr
