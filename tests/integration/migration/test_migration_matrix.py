"""Every source into every target: the same rows, and the events alone rebuild them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa

from eventsourcing import EventStore
from eventsourcing.canonical import decode, encode
from eventsourcing.events import RecordedEvent
from eventsourcing.storage.embedded import EmbeddedPostgres
from pipelines.migration.legacy_panel import create_target_schema, generate_legacy_panel
from pipelines.migration.masking import Masker
from tests.integration.migration.lab import Lab, all_events, small_chunks

CHILDREN = {
    "proxies": ("proxies", "settings"),
    "usage_logs": ("user_usage_logs", None),
    "redirects": ("subscription_redirects", "path"),
}
"""Each kind of a user's children: its table, and the column that events do not show."""


@dataclass(frozen=True)
class Ran:
    """What a run from one kind of source into one kind of target left."""

    lab: Lab
    events: list[RecordedEvent]
    counts: dict[str, int]


@pytest.fixture(scope="session")
def sources(postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same panel in SQLite and in PostgreSQL, without the defect that only SQLite can hold."""
    path = tmp_path_factory.mktemp("matrix") / "legacy.db"
    generate_legacy_panel(path, users=300)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM users WHERE typeof(used_traffic) = 'text'")
    postgres_server.ensure_database("matrix_source")
    copy_to_postgres(path, postgres_server.url("matrix_source", driver="psycopg2"))
    return {"sqlite": f"sqlite:///{path}", "postgresql": postgres_server.url("matrix_source")}


def copy_to_postgres(path: Path, url: str) -> None:
    """Every table of a SQLite file into an empty PostgreSQL database, by the types it declares."""
    metadata = sa.MetaData()
    source = sa.create_engine(f"sqlite:///{path}")
    target = sa.create_engine(url, poolclass=sa.NullPool)
    sa.event.listen(metadata, "column_reflect", portable)
    metadata.reflect(source)
    with source.connect() as read, target.begin() as write:
        metadata.create_all(write)
        for table in metadata.sorted_tables:
            rows = [dict(row._mapping) for row in read.execute(sa.select(table))]
            write.execute(sa.insert(table), rows)
    source.dispose()


def portable(_: Any, __: Any, column: Any) -> None:
    """A type that PostgreSQL has; SQLite held to no length, and the panel has texts that are too long."""
    of = column["type"].as_generic()
    column["type"] = sa.Text() if isinstance(of, sa.String) else of


def empty_target(kind: str, folder: Path, new_database: Callable[[], str]) -> str:
    if kind == "postgresql":
        url = new_database()
    else:
        (folder / "target.db").touch()
        url = f"sqlite:///{folder / 'target.db'}"
    create_target_schema(url)
    return url


async def ran(source: str, target: str, folder: Path) -> Ran:
    lab = Lab(source, target, folder / "work", small_chunks())
    async with EventStore(use_memory=True) as store:
        outcome = await lab.migration(store).run()
        events = await all_events(store)
    return Ran(lab, events, outcome.facts["statistics"]["total"])


@pytest.fixture(scope="session")
def reference(sources: dict[str, str], postgres_server: EmbeddedPostgres, tmp_path_factory: Any) -> Ran:
    postgres_server.ensure_database("matrix_reference")
    url = postgres_server.url("matrix_reference")
    create_target_schema(url)
    return asyncio.run(ran(sources["sqlite"], url, tmp_path_factory.mktemp("reference")))


@pytest.mark.parametrize("target", ["sqlite", "postgresql"])
@pytest.mark.parametrize("source", ["sqlite", "postgresql"])
async def test_every_source_into_every_target(
    source: str,
    target: str,
    sources: dict[str, str],
    reference: Ran,
    new_database: Callable[[], str],
    tmp_path: Path,
) -> None:
    url = empty_target(target, tmp_path, new_database)
    run = await ran(sources[source], url, tmp_path)
    assert run.lab.dump() == reference.lab.dump()
    assert run.counts == reference.counts
    assert run.counts["inserted"] > 250
    rebuilt, there = state_of(run.events), state_in(run.lab)
    assert rebuilt == there
    async with EventStore(use_memory=True) as store:
        undone = await run.lab.migration(store).rollback("the matrix is done")
    assert undone.facts["residual_diff"] == 0
    assert {table: rows.height for table, (rows, _) in run.lab.contents().items() if rows.height} == {}


def state_of(events: list[RecordedEvent]) -> dict[str, dict[str, Any]]:
    """The records as their events tell them, by stream."""
    told = {event.aggregate_id: event.data for event in events if event.aggregate_type in ("user", "admin")}
    return {stream: data["target_data"] for stream, data in told.items()}


def state_in(lab: Lab) -> dict[str, dict[str, Any]]:
    """The records as the target holds them, in the columns that the mapping fills, secrets masked."""
    contents, masker = lab.contents(), Masker("a configured secret", "migration-1")
    families: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for name, (table, secret) in CHILDREN.items():
        for row in rows_of(contents[table][0], masker, secret):
            family = families.setdefault(row.pop("user_id"), {child: [] for child in CHILDREN})
            family[name].append({key: value for key, value in row.items() if key != "id"})
    state = {}
    for name, kind, secret in (("admins", "admin", "hashed_password"), ("users", "user", None)):
        written = {"id", *lab.mapping.entities[name].fields}
        for row in rows_of(contents[name][0], masker, secret):
            kept = {key: value for key, value in row.items() if key in written}
            state[f"{kind}-{row['id']}"] = kept | (families[row["id"]] if kind == "user" else {})
    return state


def rows_of(frame: pl.DataFrame, masker: Masker, secret: str | None) -> Iterator[dict[str, Any]]:
    for row in frame.iter_rows(named=True):
        if secret:
            row[secret] = masker.mask(row[secret])
        told: dict[str, Any] = decode(encode(row))
        yield told
