"""Rows that the target keeps as given are not read back; whatever changes one is found all the same."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from eventsourcing import EventStore
from pipelines.migration import Progress, parse_mapping, told
from pipelines.migration.target import open_target
from pipelines.migration.worktables import written_to
from tests.integration.migration.lab import Lab

ROWS = 30
MAPPING = """\
version: 1
chunk: {rows: 10}
entities:
  things:
    from: things
    to: things
    key: id
    natural_key: id
    emit: USER_MIGRATED
    fields:
      id: {from: id}
      name: {from: name}
      at: {from: at, transform: [{datetime: {from: naive_utc, to: timestamptz}}]}
      amount: {from: amount}
"""
TRIGGER = """
CREATE FUNCTION louder() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN new.name := upper(new.name); RETURN new; END $$;
CREATE TRIGGER louder BEFORE INSERT ON things FOR EACH ROW EXECUTE FUNCTION louder();
"""
PARTITIONED = """
DROP TABLE things;
CREATE TABLE things (id bigint PRIMARY KEY, name text, at timestamptz, amount text) PARTITION BY RANGE (id);
CREATE TABLE things_1 PARTITION OF things DEFAULT;
CREATE FUNCTION louder() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN new.name := upper(new.name); RETURN new; END $$;
CREATE TRIGGER louder BEFORE INSERT ON things_1 FOR EACH ROW EXECUTE FUNCTION louder();
"""
CHANGING = {
    "a trigger": (TRIGGER, "name"),
    "a trigger of a partition": (PARTITIONED, "name"),
    "padding": ("ALTER TABLE things ALTER name TYPE char(40)", "name"),
    "a moment's precision": ("ALTER TABLE things ALTER at TYPE timestamptz(0)", "at"),
    "a number's scale": ("ALTER TABLE things ALTER amount TYPE numeric(8, 1) USING NULL", "amount"),
}
"""What changes the values that are written -> how, and the column in which every row then differs."""


@pytest.fixture
def things(new_database: Callable[[], str], tmp_path: Path) -> Lab:
    source, target = tmp_path / "source.db", new_database()
    with closing(sqlite3.connect(source)) as connection, connection:
        connection.execute(
            "CREATE TABLE things (id INTEGER PRIMARY KEY, name TEXT, at DATETIME, amount TEXT)"
        )
        rows = (
            (key, f"name {key}", f"2025-01-02 03:04:05.{key:06d}" if key > 3 else None, f"{key}.25")
            for key in range(1, ROWS + 1)
        )
        connection.executemany("INSERT INTO things VALUES (?, ?, ?, ?)", rows)
    lab = Lab(f"sqlite:///{source}", target, tmp_path / "work", parse_mapping(MAPPING), ("things",))
    lab.execute("CREATE TABLE things (id bigint PRIMARY KEY, name varchar(40), at timestamptz, amount text)")
    return lab


async def load(lab: Lab, store: EventStore, on_progress: Callable[[Progress], None] | None = None) -> Any:
    migration = lab.migration(store, on_progress=on_progress)
    for stage in ("start", "check_schema", "extract", "transform", "validate", "load"):
        await getattr(migration, stage)()
    return migration


def read_back(lab: Lab) -> int:
    """How many rows were read back after they were written."""
    target = open_target(lab.target_url)
    with target.transaction() as transaction:
        frames = [*written_to(transaction.connection, "migration-1", "things")]
    target.close()
    return sum(int(frame["after_hash"].is_not_null().sum()) for frame in frames)


async def changed(migration: Any) -> dict[str, list[str]]:
    """What the verification finds changed: the columns by key."""
    facts = (await migration.verify()).facts
    assert {item["kind"] for item in facts["differences"]} <= {"changed"}
    return {item["key"]: item["columns"] for item in facts["differences"]}


async def test_kept_rows_are_not_read_back_and_what_others_change_is_found(things: Lab) -> None:
    async with EventStore(use_memory=True) as store:
        migration = await load(things, store)
        assert read_back(things) == 0
        assert await changed(migration) == {}
        things.execute("UPDATE things SET name = name || ' ' WHERE id = 7")
        things.execute("UPDATE things SET at = 'infinity' WHERE id = 2")  # which no frame can hold
        assert await changed(migration) == {"7": ["name"], "2": ["at"]}
        undone = (await migration.rollback("a rehearsal")).facts
    assert {item["key"] for item in undone["conflicting"]} == {"7", "2"}
    assert undone["deleted"] == {"things": ROWS - 2}
    assert things.execute("SELECT id FROM things ORDER BY id") == [(2,), (7,)]


@pytest.mark.parametrize("what", CHANGING)
async def test_what_the_target_makes_of_values_is_found_and_can_be_taken_back(what: str, things: Lab) -> None:
    change, column = CHANGING[what]
    things.execute(change)
    async with EventStore(use_memory=True) as store:
        migration = await load(things, store)
        assert read_back(things) == ROWS
        found = await changed(migration)
        undone = (await migration.rollback("as others want it")).facts
    whole_seconds = 3 if column == "at" else 0  # those without a moment
    assert found.keys() == {str(key) for key in range(1 + whole_seconds, ROWS + 1)}
    assert {tuple(columns) for columns in found.values()} == {(column,)}
    assert (undone["conflicts"], things.rows("things")) == (0, 0)


async def test_a_default_is_no_difference_but_a_change_of_it_is_a_conflict(things: Lab) -> None:
    things.execute("ALTER TABLE things ADD extra text DEFAULT 'given'")
    async with EventStore(use_memory=True) as store:
        migration = await load(things, store)
        assert read_back(things) == ROWS
        assert await changed(migration) == {}
        things.execute("UPDATE things SET extra = 'of my own' WHERE id = 5")
        undone = (await migration.rollback("a rehearsal")).facts
    assert [item["key"] for item in undone["conflicting"]] == ["5"]


async def test_a_trigger_that_comes_during_the_load_is_noticed(things: Lab) -> None:
    """Each chunk asks for itself, while its own lock keeps triggers away."""
    made: list[int] = []

    def create(progress: Progress) -> None:
        if progress.stage == "load" and not made:
            made.append(progress.done)
            things.execute(TRIGGER)

    async with EventStore(use_memory=True) as store:
        migration = await load(things, store, create)
        assert read_back(things) == ROWS - made[0] > 0
        assert len(await changed(migration)) == ROWS - made[0]
        undone = (await migration.rollback("a rehearsal")).facts
    assert (undone["conflicts"], things.rows("things")) == (0, 0)


async def test_a_column_that_others_added_since_holds_what_nobody_may_delete(things: Lab) -> None:
    async with EventStore(use_memory=True) as store:
        migration = await load(things, store)
        things.execute("ALTER TABLE things ADD extra text DEFAULT 'of others'")
        undone = (await migration.rollback("a rehearsal")).facts
    assert (undone["conflicts"], things.rows("things")) == (ROWS, ROWS)


@pytest.mark.parametrize(("kind", "reads"), [("json", False), ("jsonb", True)])
async def test_json_that_keeps_its_text_is_compared_as_text(
    kind: str, reads: bool, things: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    things.execute(f"ALTER TABLE things ALTER amount TYPE {kind} USING NULL")
    read: list[str] = []
    decode = told._target_data

    def noted(payload: str) -> told.Row:
        read.append(payload)
        return decode(payload)

    monkeypatch.setattr(told, "_target_data", noted)
    async with EventStore(use_memory=True) as store:
        migration = await load(things, store)
        assert await changed(migration) == {}
        assert bool(read) is reads
        things.execute("UPDATE things SET amount = '2.25' WHERE id = 1")
        assert await changed(migration) == {"1": ["amount"]}
