"""A migration laboratory: one generated panel, one target, and migrations between them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import sqlalchemy as sa

from eventsourcing import EventQuery, EventStore
from eventsourcing.events import RecordedEvent
from pipelines.migration import Mapping, Migration, Progress, StageOutcome, parse_mapping
from pipelines.migration.legacy_panel import TARGET_TABLES, mapping_path
from pipelines.migration.rowhash import row_hashes
from pipelines.migration.schema import Column
from pipelines.migration.target import open_target
from tests.databases import execute

USERS = 240


@dataclass(frozen=True)
class Panel:
    """A generated legacy database, and how many records each class of defect must quarantine."""

    path: Path
    expected: dict[str, int]


def small_chunks() -> Mapping:
    """The demo's mapping in chunks small enough to be many."""
    return parse_mapping(mapping_path().read_text().replace("rows: 1000", "rows: 60"))


@dataclass
class Lab:
    """One target and one work folder, and migrations that share them."""

    source_url: str
    target_url: str
    work_dir: Path
    mapping: Mapping
    tables: tuple[str, ...] = tuple(TARGET_TABLES)

    def migration(
        self,
        store: Any,
        migration_id: str = "migration-1",
        *,
        mapping: Mapping | Path | None = None,
        source_url: str | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Migration:
        return Migration(
            mapping or self.mapping,
            source_url=source_url or self.source_url,
            target_url=self.target_url,
            store=store,
            work_dir=self.work_dir,
            migration_id=migration_id,
            secret="a configured secret",
            metadata=metadata,
            on_progress=on_progress,
        )

    def execute(self, statement: str) -> list[Any]:
        """Run one statement on the target, as somebody else would."""
        return execute(self.target_url, statement)

    def dump(self) -> dict[str, str]:
        """The hash of each table's canonical encoding in key order, work tables aside."""
        return {
            name: hashlib.sha256("".join(row_hashes(rows, columns)).encode()).hexdigest()
            for name, (rows, columns) in self.contents().items()
        }

    def contents(self) -> dict[str, tuple[pl.DataFrame, list[Column]]]:
        """Each table's rows in key order, and its columns."""
        target = open_target(self.target_url)
        tables = target.tables({*self.tables})
        with target.transaction() as transaction:
            found = {}
            for name, table in tables.items():
                columns = [*table.columns.values()]
                nothing = pl.DataFrame(schema={column.name: column.dtype for column in columns})
                pages = transaction.scan(table, [*table.columns], rows=10**6)
                found[name] = (
                    pl.concat([nothing, *(page.select(*nothing.columns) for page in pages)]).sort(table.key),
                    columns,
                )
        target.close()
        return found

    def rows(self, table: str) -> int:
        return int(self.execute(f"SELECT count(*) FROM {table}")[0][0])


def fill(url: str, metadata: sa.MetaData, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Make the tables of a database and their rows."""
    engine = sa.create_engine(url.replace("+asyncpg", "+psycopg2"), poolclass=sa.NullPool)
    with engine.begin() as connection:
        metadata.create_all(connection)
        for name, values in rows.items():
            connection.execute(sa.insert(metadata.tables[name]), values)
    engine.dispose()


@dataclass(frozen=True)
class Finished:
    """A run that ended well, for tests that only look."""

    lab: Lab
    outcome: StageOutcome
    events: list[RecordedEvent]
    progress: list[Progress]


async def all_events(store: EventStore) -> list[RecordedEvent]:
    return [event async for event in store.get_all_events()]


_VARYING = {"duration_seconds", "rows_per_second", "target_config"}
_OURS = {
    "started_at",
    "checked_at",
    "extracted_at",
    "transformed_at",
    "validated_at",
    "imported_at",
    "completed_at",
}
_OURS |= {"migrated_at", "converted_at", "quarantined_at", "initiated_at", "rolled_back_at"}


def comparable_events(events: list[RecordedEvent]) -> list[Any]:
    """The events without what may differ between two runs: ids, times, durations, rates, database name."""
    return sorted(
        (event.aggregate_id, event.event_version, event.event_type, repr(_without_times(event.data)))
        for event in events
    )


async def hash_of_events(store: EventStore) -> str:
    """The same of every event in a store as one hash, at the speed of columns."""
    frames = [frame async for frame in store.read_frames(EventQuery())]
    times = rf'"({"|".join(_OURS)})":"[^"]*"'
    rates, database = r'"(duration_seconds|rows_per_second)":[0-9.]+', r'"target_config":\{[^}]*\}'
    told = pl.col("data")
    for varying in (times, rates, database):
        told = told.str.replace_all(varying, "")
    rows = pl.concat(frames).sort("aggregate_id", "event_version").with_columns(told).drop("position")
    return hashlib.sha256(rows.write_csv().encode()).hexdigest()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        kept = sorted(value.items())
        return {key: _without_times(inner) for key, inner in kept if key not in _VARYING | _OURS}
    return [_without_times(inner) for inner in value] if isinstance(value, list) else value
