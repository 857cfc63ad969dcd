"""The work tables in the target: runs, loaded chunks, the ID map and what it takes to undo.

Chunk state, ID map and undo rows are written in the transaction of the rows that they speak of, so after
a crash either all of a chunk is there or nothing of it. Plain SQLAlchemy Core: every target has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import polars as pl
import sqlalchemy as sa

from pipelines.migration.errors import MigrationError, TargetBusyError

LEASE_S = 60
"""How long a run holds the target after its last sign of life, in seconds."""

OUTCOMES = ("inserted", "updated", "unchanged", "skipped")
"""What becomes of a valid record when its chunk is loaded."""

_metadata = sa.MetaData()
_moment = sa.DateTime(timezone=True)

runs = sa.Table(
    "mig_run",
    _metadata,
    sa.Column("migration_id", sa.String(255), primary_key=True),
    sa.Column("mapping_sha256", sa.String(64), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("stage", sa.String(16), nullable=False),
    sa.Column("started_at", _moment, nullable=False),
    sa.Column("correlation_id", sa.Uuid, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("lease_until", _moment),
    sa.Column("rollback_number", sa.Integer, nullable=False),
    sa.Column("rollback_at", _moment),
    sa.Column("rollback_reason", sa.Text),
)
chunks = sa.Table(
    "mig_chunk",
    _metadata,
    sa.Column("migration_id", sa.String(255), primary_key=True),
    sa.Column("entity", sa.String(128), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("row_count", sa.Integer, nullable=False),
    sa.Column("child_count", sa.Integer, nullable=False),
    sa.Column("loaded_at", _moment, nullable=False),
    sa.Column("events_appended", sa.Boolean, nullable=False),
    sa.Column("undone_by", sa.Integer, nullable=False),
)
idmap = sa.Table(
    "mig_idmap",
    _metadata,
    sa.Column("migration_id", sa.String(255), primary_key=True),
    sa.Column("entity", sa.String(128), primary_key=True),
    sa.Column("source_key", sa.Text, primary_key=True),
    sa.Column("target_key", sa.Text, nullable=False),
)
undo = sa.Table(
    "mig_undo",
    _metadata,
    sa.Column("migration_id", sa.String(255), primary_key=True),
    sa.Column("table_name", sa.String(128), primary_key=True),
    sa.Column("target_key", sa.Text, primary_key=True),
    sa.Column("entity", sa.String(128), nullable=False),
    sa.Column("chunk", sa.Integer, nullable=False),
    sa.Column("record_key", sa.Text, nullable=False),
    sa.Column("op", sa.String(8), nullable=False),
    sa.Column("before", sa.JSON),
    sa.Column("row_hash", sa.String(64), nullable=False),
    sa.Column("after_hash", sa.String(64), nullable=False),
    sa.Column("state", sa.String(8), nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("undone_by", sa.Integer),
    sa.Column("undone_at", _moment),
    sa.Index("mig_undo_by_chunk", "migration_id", "entity", "chunk"),
)
quarantine = sa.Table(
    "mig_quarantine",
    _metadata,
    sa.Column("migration_id", sa.String(255), primary_key=True),
    sa.Column("entity", sa.String(128), primary_key=True),
    sa.Column("source_key", sa.Text, primary_key=True),
    sa.Column("chunk", sa.Integer, primary_key=True),
    sa.Column("rule", sa.String(32), nullable=False),
    sa.Column("column_name", sa.String(128), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
)
"""The records that the target itself refused (`refusals.py`)."""

WORK_TABLES = frozenset(_metadata.tables)


@dataclass(frozen=True)
class RunRow:
    """One run, as the target knows it. Status: running, completed, failed, rolling_back, rolled_back."""

    migration_id: str
    mapping_sha256: str
    status: str
    stage: str
    started_at: datetime
    correlation_id: UUID
    metadata: dict[str, Any]
    rollback_number: int = 0
    rollback_at: datetime | None = None
    rollback_reason: str | None = None


_RUN_COLUMNS = [runs.c[name] for name in RunRow.__dataclass_fields__]


def create_work_tables(connection: sa.Connection) -> None:
    """Create what is missing of the work tables."""
    _metadata.create_all(connection)


def find_run(connection: sa.Connection, migration_id: str) -> RunRow | None:
    """The run of this id; None when there is none, or no work tables yet."""
    if not sa.inspect(connection).has_table(runs.name):
        return None
    statement = sa.select(*_RUN_COLUMNS).where(runs.c.migration_id == migration_id)
    row = connection.execute(statement).one_or_none()
    return RunRow(**row._mapping) if row else None


def refuse_unless_running(connection: sa.Connection, migration_id: str) -> None:
    """Raise MigrationError when the run was ended meanwhile, by a rollback or by `fail`."""
    status = connection.scalar(sa.select(runs.c.status).where(runs.c.migration_id == migration_id))
    if status != "running":
        raise MigrationError(f"migration {migration_id!r} is {status}, no longer running", stage="load")


def refuse_other_holder(connection: sa.Connection, migration_id: str) -> None:
    """Raise TargetBusyError while the lease of another run has not expired."""
    if not sa.inspect(connection).has_table(runs.name):
        return
    statement = sa.select(runs.c.migration_id).where(
        runs.c.migration_id != migration_id, runs.c.lease_until > sa.func.now()
    )
    holder = connection.scalar(statement.limit(1))
    if holder is not None:
        raise TargetBusyError(holder)


def insert_run(connection: sa.Connection, row: RunRow) -> None:
    """Add a run, which then holds the target."""
    connection.execute(sa.insert(runs).values(**vars(row), lease_until=_lease()))


def update_run(connection: sa.Connection, migration_id: str, *, holds: bool = True, **changes: Any) -> None:
    """Change a run and renew its lease; with `holds` false the lease ends."""
    changes["lease_until"] = _lease() if holds else None
    connection.execute(sa.update(runs).where(runs.c.migration_id == migration_id).values(**changes))


def _lease() -> datetime:
    return datetime.now(UTC) + timedelta(seconds=LEASE_S)


def loaded_chunks(connection: sa.Connection, migration_id: str, entity: str) -> dict[int, sa.Row[Any]]:
    """The loaded chunks of an entity by number."""
    statement = sa.select(chunks).where(chunks.c.migration_id == migration_id, chunks.c.entity == entity)
    return {row.number: row for row in connection.execute(statement.order_by(chunks.c.number))}


def any_chunk_loaded(connection: sa.Connection, migration_id: str) -> bool:
    """Whether the run has written any record."""
    statement = sa.select(chunks.c.number).where(chunks.c.migration_id == migration_id).limit(1)
    return connection.scalar(statement) is not None


def mark_chunk(
    connection: sa.Connection, migration_id: str, entity: str, number: int, **changes: Any
) -> None:
    """Change the state of one chunk."""
    connection.execute(
        sa.update(chunks)
        .where(chunks.c.migration_id == migration_id, chunks.c.entity == entity, chunks.c.number == number)
        .values(**changes)
    )


def written_to(connection: sa.Connection, migration_id: str, table: str) -> Iterator[pl.DataFrame]:
    """What the run did to a table, a frame for each chunk."""
    statement = sa.select(
        undo.c.target_key, undo.c.record_key, undo.c.op, undo.c.row_hash, undo.c.after_hash, undo.c.before
    ).where(undo.c.migration_id == migration_id, undo.c.table_name == table)
    names = ("target_key", "record_key", "op", "row_hash", "after_hash", "before")
    rows = [tuple(row) for row in connection.execute(statement)]
    yield pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")


def id_map(connection: sa.Connection, migration_id: str, entity: str, table: str) -> Iterator[pl.DataFrame]:  # noqa: ARG001 - frames are kept by table soon
    """`source_key` and `target_key` of an entity's records, a frame for each chunk in order."""
    statement = sa.select(idmap.c.source_key, idmap.c.target_key).where(
        idmap.c.migration_id == migration_id, idmap.c.entity == entity
    )
    rows = [tuple(row) for row in connection.execute(statement)]
    yield pl.DataFrame(rows, schema=dict.fromkeys(("source_key", "target_key"), pl.String), orient="row")


def undo_rows(connection: sa.Connection, migration_id: str, entity: str, chunk: int) -> Sequence[sa.Row[Any]]:
    """What a chunk wrote, row by row, by table and key."""
    statement = sa.select(undo).where(
        undo.c.migration_id == migration_id, undo.c.entity == entity, undo.c.chunk == chunk
    )
    return connection.execute(statement.order_by(undo.c.table_name, undo.c.target_key)).all()
