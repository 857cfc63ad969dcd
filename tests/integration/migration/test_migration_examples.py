"""The examples beside the demo: each runs, and does what its README says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import sqlalchemy as sa
import yaml

from eventsourcing import EventStore
from pipelines.migration import Mapping, StageOutcome, load_mapping
from tests.integration.migration.lab import Lab, all_events

EXAMPLES = Path(__file__).parents[3] / "examples"


def prepared(url: str, script: Path) -> str:
    """The URL of a database in which a script was run."""
    engine = sa.create_engine(url.replace("+asyncpg", "+psycopg2"), poolclass=sa.NullPool)
    with engine.begin() as connection:
        for statement in script.read_text().split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement)
    engine.dispose()
    return url


@pytest.mark.parametrize(
    "example", sorted(EXAMPLES.glob("*/mapping.yaml")), ids=lambda path: path.parent.name
)
def test_an_editor_finds_nothing_wrong_with_an_example(example: Path) -> None:
    published = json.loads((EXAMPLES.parent / "docs" / "mapping.schema.json").read_text())
    wrong = jsonschema.Draft202012Validator(published).iter_errors(yaml.safe_load(example.read_text()))
    assert [error.message for error in wrong] == []


def counted(outcome: StageOutcome, entity: str) -> dict[str, int]:
    totals: dict[str, int] = outcome.facts["statistics"]["entities"][entity]
    return {name: count for name, count in totals.items() if count}


async def ran(
    mapping: Mapping, source: str, target: str, work: Path
) -> tuple[Lab, StageOutcome, dict[str, dict[str, Any]]]:
    lab = Lab(source, target, work, mapping)
    async with EventStore(use_memory=True) as store:
        outcome = await lab.migration(store).run()
        events = {event.aggregate_id: event.data for event in await all_events(store)}
    return lab, outcome, events


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_csv_of_accounts(kind: str, new_database: Callable[[], str], tmp_path: Path) -> None:
    folder = EXAMPLES / "csv-accounts"
    (tmp_path / "target.db").touch()
    url = new_database() if kind == "postgresql" else f"sqlite:///{tmp_path / 'target.db'}"
    prepared(url, folder / "target.sql")
    mapping = load_mapping(folder / "mapping.yaml")
    source = f"csv:///{folder / 'accounts.csv'}"
    lab, outcome, events = await ran(mapping, source, url, tmp_path / "work")
    assert counted(outcome, "accounts") == {"in": 6, "inserted": 4, "quarantined": 2}
    broken = {key: data for key, data in events.items() if key.startswith("record-")}
    assert {(data["source_key"], data["rule"], data["column"]) for data in broken.values()} == {
        ("1004", "pattern", "email"),
        ("1005", "datetime", "joined_at"),
    }
    rows = lab.execute("SELECT id, email, plan, balance FROM accounts ORDER BY id")
    assert [(row[0], row[1], row[2], row[3] and float(row[3])) for row in rows] == [
        (1001, "ada@example.org", "professional", 120.5),
        (1002, "grace@example.org", "basic", 0),
        (1003, "margaret@example.org", "professional", 7.25),
        (1006, "radia@example.org", "basic", None),
    ]
    async with EventStore(use_memory=True) as store:
        again = await lab.migration(store, "migration-2").run()
    assert counted(again, "accounts") == {"in": 6, "unchanged": 4, "quarantined": 2}


async def test_from_one_postgresql_to_another(new_database: Callable[[], str], tmp_path: Path) -> None:
    folder = EXAMPLES / "postgres-to-postgres"
    source = prepared(new_database(), folder / "source.sql")
    target = prepared(new_database(), folder / "target.sql")
    mapping = load_mapping(folder / "mapping.yaml")
    lab, outcome, events = await ran(mapping, source, target, tmp_path / "work")
    assert counted(outcome, "staff") == {"in": 2, "inserted": 1, "quarantined": 1}
    assert counted(outcome, "customers") == {"in": 4, "inserted": 3, "filtered": 1}
    assert lab.execute("SELECT id, name, city, score, encode(avatar, 'hex') FROM people ORDER BY id") == [
        (500, "berta", None, None, None),
        (501, "anton", "Köln", 1.25, "00ff10"),
        (502, "berta_2", None, 0.0, None),
        (503, "caesar", "Bonn", 99999.999, None),
    ]
    assert lab.execute("SELECT name, hired_at = '2024-07-01 07:00:00+00' FROM agents") == [("lea", True)]
    assert lab.execute("SELECT p.name FROM people p JOIN agents a ON a.id = p.agent_id") == [("anton",)]
    assert lab.execute("SELECT nextval('people_id_seq')") == [(504,)]
    name = sa.make_url(target).database
    assert events[f"user-{name}-502"]["username"] == "berta_2"
    assert "argon2" not in repr(events)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_accounts_of_many_tenants(kind: str, new_database: Callable[[], str], tmp_path: Path) -> None:
    folder = EXAMPLES / "many-tenants"

    def database(name: str) -> str:
        (tmp_path / name).touch()
        url = new_database() if kind == "postgresql" else f"sqlite:///{tmp_path / name}"
        return prepared(url, folder / f"{name}.sql")

    mapping = load_mapping(folder / "mapping.yaml")
    lab, outcome, events = await ran(mapping, database("source"), database("target"), tmp_path / "work")
    assert counted(outcome, "accounts") == {"in": 3, "inserted": 2, "updated": 1}
    assert counted(outcome, "grants") == {"in": 5, "inserted": 3, "updated": 1, "quarantined": 1}
    assert lab.execute("SELECT * FROM accounts ORDER BY 1, 2") == [
        (7, "ann", "ann@acme.example"),
        (7, "bob", None),
        (9, "ann", "ann@globex.example"),
    ]
    grants = lab.execute("SELECT tenant_id, login, service_id FROM grants ORDER BY 1, 2, 3")
    assert grants == [(7, "ann", 3), (7, "ann", 5), (7, "bob", 3), (9, "ann", 5)]
    assert events["record-grants-globex,eve,2"]["rule"] == "reference"
    assert events["user-7,ann"]["username"] == "7,ann"
    async with EventStore(use_memory=True) as store:
        await lab.migration(store).rollback("as it was")
    assert lab.execute("SELECT * FROM accounts") == [(7, "ann", "ann@before.example")]
    assert [(*row[:3], str(row[3])) for row in lab.execute("SELECT * FROM grants")] == [
        (7, "ann", 3, "2020-01-01")
    ]
