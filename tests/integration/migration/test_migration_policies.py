"""A target that is not empty: what each conflict policy leaves, counts and puts back."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa

from eventsourcing import EventStore
from eventsourcing.events import RecordedEvent
from pipelines.migration import (
    Mapping,
    MigrationError,
    Progress,
    StageOutcome,
    TargetBusyError,
    parse_mapping,
)
from pipelines.migration.transforms import Settings, register_child_function
from tests.integration.migration.lab import Lab, all_events, fill

MAPPING = """\
version: 1
on_conflict: {policy}
chunk: {{rows: 3}}
thresholds: {{max_quarantine_ratio: 0.5}}
entities:
  teams:
    from: teams
    to: groups
    key: id
    natural_key: title
    fields:
      title: {{from: title}}
  people:
    from: people
    to: accounts
    key: id
    natural_key: name
    emit: USER_MIGRATED
    fields:
      name: {{from: name}}
      email: {{from: email}}
      group_id: {{from: team_id, ref: teams}}
    children:
      labels: {{to: labels, parent: account_id, from: [tags], transform: split_tags}}
"""
SOURCE = """
CREATE TABLE teams (id INTEGER PRIMARY KEY, title TEXT NOT NULL);
CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT, email TEXT, team_id INTEGER, tags TEXT);
INSERT INTO teams VALUES (1, 'red'), (2, 'blue');
INSERT INTO people VALUES
    (1, 'ann', 'ann@new', 1, 'a,b'), (2, 'bob', 'bob@old', 2, 'x'), (3, 'cid', 'cid@new', 2, ''),
    (4, 'dan', 'eve@old', 1, ''), (5, 'fay', 'fay@old', 1, 'k,l'), (6, 'gus', NULL, NULL, 'z');
"""


@register_child_function("split_tags")
def split_tags(frame: pl.DataFrame, _: Settings) -> pl.DataFrame:
    """One label for each tag."""
    words = frame.select("_record", pl.col("tags").str.split(",").alias("word")).explode("word")
    return words.filter(pl.col("word").is_not_null() & (pl.col("word") != ""))


def filled_target(lab: Lab) -> None:
    """Accounts that share names with the source: ann differs, bob and fay are the same but for fay's
    labels, eve has an address that dan wants."""
    metadata = sa.MetaData()
    sa.Table(
        "groups",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("title", sa.Text, nullable=False, unique=True),
    )
    sa.Table(
        "accounts",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(20), nullable=False, unique=True),
        sa.Column("email", sa.Text, unique=True),
        sa.Column("group_id", sa.ForeignKey("groups.id")),
        sa.Column("points", sa.Integer, nullable=False, server_default="7"),
        sa.Column("photo", sa.LargeBinary),
        sa.Column("seen_at", sa.DateTime(timezone=True)),
    )
    sa.Table(
        "labels",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("account_id", sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("word", sa.Text, nullable=False),
    )
    fill(lab.target_url, metadata, {})
    lab.execute("INSERT INTO groups VALUES (40, 'blue')")
    lab.execute(
        "INSERT INTO accounts (id, name, email, group_id, points, seen_at) VALUES"
        " (10, 'ann', 'ann@old', NULL, 99, '2024-01-02 03:04:05.678901'),"
        " (11, 'bob', 'bob@old', 40, 1, NULL), (12, 'eve', 'eve@old', NULL, 1, NULL)"
    )
    red = 41  # the number that the source's first team is given
    lab.execute("INSERT INTO accounts (id, name, email, points) VALUES (13, 'fay', 'fay@old', 5)")
    lab.execute("INSERT INTO labels VALUES (5, 11, 'x'), (6, 13, 'k'), (7, 10, 'old')")
    assert lab.execute("SELECT max(id) + 1 FROM groups") == [(red,)]


@pytest.fixture(params=["sqlite", "postgresql"])
def filled(request: pytest.FixtureRequest, new_database: Callable[[], str], tmp_path: Path) -> Lab:
    source = tmp_path / "source.db"
    with closing(sqlite3.connect(source)) as connection:
        connection.executescript(SOURCE)
    url = new_database() if request.param == "postgresql" else f"sqlite:///{tmp_path / 'target.db'}"
    (tmp_path / "target.db").touch()
    lab = Lab(f"sqlite:///{source}", url, tmp_path / "work", mapping("update"))
    filled_target(lab)
    return lab


def mapping(policy: str) -> Mapping:
    return parse_mapping(MAPPING.format(policy=policy))


def everything(lab: Lab) -> list[list[Any]]:
    return [lab.execute(f"SELECT * FROM {table} ORDER BY id") for table in ("groups", "accounts", "labels")]


def accounts(lab: Lab) -> dict[str, tuple[Any, ...]]:
    rows = lab.execute(
        "SELECT a.name, a.id, a.email, g.title, a.points FROM accounts a"
        " LEFT JOIN groups g ON g.id = a.group_id ORDER BY a.id"
    )
    return {name: tuple(values) for name, *values in rows}


def labels(lab: Lab) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, word in lab.execute(
        "SELECT a.name, l.word FROM labels l JOIN accounts a ON a.id = l.account_id ORDER BY l.id"
    ):
        found.setdefault(name, []).append(word)
    return found


def is_undone(event: RecordedEvent) -> bool:
    return event.event_type == "user.rolled_back"


async def run(lab: Lab, policy: str, store: EventStore) -> StageOutcome:
    return await lab.migration(store, mapping=mapping(policy)).run()


def counted(outcome: StageOutcome, entity: str) -> dict[str, int]:
    totals: dict[str, int] = outcome.facts["statistics"]["entities"][entity]
    assert totals["in"] == sum(count for name, count in totals.items() if name != "in")
    return {name: count for name, count in totals.items() if count and name != "in"}


async def test_update_changes_what_differs_and_rollback_restores_it(filled: Lab) -> None:
    before = everything(filled)
    async with EventStore(use_memory=True) as store:
        outcome = await run(filled, "update", store)
        events = {event.aggregate_id: event for event in await all_events(store)}
        assert counted(outcome, "people") == {"inserted": 2, "updated": 2, "unchanged": 1, "quarantined": 1}
        assert counted(outcome, "teams") == {"inserted": 1, "unchanged": 1}
        assert accounts(filled) == {
            "ann": (10, "ann@new", "red", 99),
            "bob": (11, "bob@old", "blue", 1),
            "eve": (12, "eve@old", None, 1),
            "fay": (13, "fay@old", "red", 5),
            "cid": (16, "cid@new", "blue", 7),
            "gus": (19, None, None, 7),
        }
        assert labels(filled) == {"bob": ["x"], "ann": ["a", "b"], "fay": ["k", "l"], "gus": ["z"]}
        conflict = events["record-people-4"].data
        assert (conflict["rule"], conflict["column"]) == ("conflict", "email")
        assert events["user-10"].data["action"] == "updated"
        assert events["user-11"].data["action"] == "unchanged"
        undone = await filled.migration(store, mapping=mapping("update")).rollback("a rehearsal")
        actions = {e.aggregate_id: e.data["action"] for e in await all_events(store) if is_undone(e)}
    assert undone.facts["residual_diff"] == 0
    assert everything(filled) == before
    restored, deleted = ("user-10", "user-11", "user-13"), ("user-16", "user-19")
    assert actions == dict.fromkeys(restored, "restored") | dict.fromkeys(deleted, "deleted")


async def test_skip_leaves_what_is_there_and_references_lead_to_it(filled: Lab) -> None:
    before = everything(filled)
    async with EventStore(use_memory=True) as store:
        outcome = await run(filled, "skip", store)
        told = {event.aggregate_id for event in await all_events(store) if event.aggregate_type == "user"}
        assert counted(outcome, "people") == {"inserted": 2, "skipped": 3, "quarantined": 1}
        assert told == {"user-16", "user-19"}
        assert accounts(filled)["cid"] == (16, "cid@new", "blue", 7)
        assert accounts(filled)["ann"] == (10, "ann@old", None, 99)
        await filled.migration(store, mapping=mapping("skip")).rollback("never mind")
    assert everything(filled) == before


async def test_rename_inserts_under_the_first_free_name(filled: Lab) -> None:
    filled.execute("UPDATE accounts SET email = name")
    filled.execute("INSERT INTO accounts (id, name, points) VALUES (14, 'bob_2', 0)")
    before = everything(filled)
    async with EventStore(use_memory=True) as store:
        outcome = await run(filled, "rename", store)
        assert counted(outcome, "people") == {"inserted": 6}
        assert set(accounts(filled)) >= {"ann", "ann_2", "bob", "bob_2", "bob_3", "fay_2", "cid"}
        assert accounts(filled)["cid"][2] == "blue_2"
        await filled.migration(store, mapping=mapping("rename")).rollback("never mind")
    assert everything(filled) == before


async def test_what_others_changed_is_left_alone_unless_forced(filled: Lab) -> None:
    before = everything(filled)
    async with EventStore(use_memory=True) as store:
        await run(filled, "update", store)
        migration = filled.migration(store, mapping=mapping("update"))
        filled.execute("UPDATE accounts SET points = points + 1 WHERE name IN ('ann', 'cid')")
        first = (await migration.rollback("with conflicts")).facts
        left = accounts(filled)
        second = (await migration.rollback("all the same", force=True)).facts
        with pytest.raises(MigrationError, match="rolled back already"):
            await migration.rollback("again")
    reasons = {item["key"]: item["reason"] for item in first["conflicting"] if item["entity"] == "people"}
    assert reasons == {"10": "accounts 10 was changed by others", "16": "accounts 16 was changed by others"}
    assert left["ann"] == (10, "ann@new", "red", 100)
    assert left["cid"] == (16, "cid@new", "blue", 8)
    assert set(left) == {"ann", "bob", "eve", "fay", "cid"}
    assert second["residual_diff"] == 0
    assert everything(filled) == before


async def test_a_rollback_to_a_stage_lets_the_run_go_on_from_there(filled: Lab) -> None:
    def crash(progress: Progress) -> None:
        if progress.stage == "load" and progress.entity == "people":
            raise RuntimeError("the process dies here")

    before = everything(filled)
    async with EventStore(use_memory=True) as store:
        with pytest.raises(RuntimeError):
            await filled.migration(store, mapping=mapping("update"), on_progress=crash).run()
        migration = filled.migration(store, mapping=mapping("update"))
        undone = await migration.rollback("look again", to_stage="extract")
        assert undone.facts["residual_diff"] == 0
        assert everything(filled) == before
        filled.execute("UPDATE accounts SET email = 'elsewhere' WHERE name = 'eve'")
        outcome = await migration.run()
        assert counted(outcome, "people") == {"inserted": 3, "updated": 2, "unchanged": 1}
        types = [event.event_type for event in await store.get_events("migration-1")]
        with pytest.raises(MigrationError, match="a completed run has no staged files"):
            await migration.rollback("too far", to_stage="validate")
    assert types.count("data.extracted") == 1
    assert types.count("data.validated") == 2
    assert types[-1] == "migration.completed"


async def test_a_run_that_died_goes_on_to_the_same_target(filled: Lab) -> None:
    for stage in ("transform", "validate", "load"):

        def crash(progress: Progress, stage: str = stage) -> None:
            if progress.stage == stage and progress.entity == "people":
                raise RuntimeError("the process dies here")

        async with EventStore(use_memory=True) as store:
            migration = filled.migration(
                store, f"migration-{stage}", mapping=mapping("update"), on_progress=crash
            )
            with pytest.raises(RuntimeError):
                await migration.run()
            again = filled.migration(store, f"migration-{stage}", mapping=mapping("update"))
            outcome = await again.run()
            assert counted(outcome, "people") == {
                "inserted": 2,
                "updated": 2,
                "unchanged": 1,
                "quarantined": 1,
            }
            after = everything(filled)
            await again.rollback("and once more")
        assert after[1] != everything(filled)[1]


async def test_two_runs_do_not_share_a_target_whatever_its_kind(filled: Lab) -> None:
    async with EventStore(use_memory=True) as store:
        await filled.migration(store, mapping=mapping("update")).start()
        with pytest.raises(TargetBusyError, match="'migration-1' holds the target"):
            await filled.migration(store, "migration-2", mapping=mapping("update")).start()
        await filled.migration(store, mapping=mapping("update")).rollback("let go")
        await filled.migration(store, "migration-2", mapping=mapping("update")).start()
