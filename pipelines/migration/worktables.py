"""The work tables in the target: runs, loaded chunks, what each wrote, and what rollbacks left behind.

A chunk's state and the record of what it wrote are committed with its rows, so after a crash either all
of a chunk is there or nothing of it. What a chunk wrote is kept as one compressed frame a table
(`Written`): a row of our own for each row of theirs would cost more than the migration itself.
Plain SQLAlchemy Core: every target has them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import polars as pl
import sqlalchemy as sa

from pipelines.migration.errors import MigrationError, TargetBusyError

LEASE_S = 60
"""How long a run holds the target after its last sign of life, in seconds."""

WRITTEN: dict[str, pl.DataType] = {
    "target_key": pl.String(),
    "record_key": pl.String(),
    "source_key": pl.String(),
    "op": pl.String(),
    "row_hash": pl.String(),
    "after_hash": pl.String(),
    "before": pl.String(),
}
"""A frame of what a chunk did to one table, a row for each row of it that the chunk looked at.

`target_key` is the row's key and `record_key` that of the record it belongs to, as text; `source_key` is
the source's key of a record, null for a child. `op` is `insert`, `update`, `unchanged`, `skip` or, for a
child that its record had before, `delete`. `row_hash` (`rowhash.row_hashes` of what was meant, over the
loaded columns in the order of `load.hashed_columns`) is null for `skip` and `delete`. `after_hash` is the
target's own hash of the whole row as it stood when the chunk was committed; it is null after `skip` and
`delete`, and after an `insert` of which the target keeps everything as it was meant (`row_hash`). `before`
is the row's image before an `update` or `delete`.
"""

OUTCOMES = ("inserted", "updated", "unchanged", "skipped")
"""What becomes of a valid record when its chunk is loaded; a chunk's `counts` has these keys."""


class _Moment(sa.types.TypeDecorator[datetime]):
    """A moment in UTC, also where the database keeps no zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _: Any) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, _: Any) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC) if value.tzinfo is None else value


_metadata = sa.MetaData()

runs = sa.Table(
    "mig_run",
    _metadata,
    sa.Column("migration_id", sa.String(255), primary_key=True),
    sa.Column("mapping_sha256", sa.String(64), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("stage", sa.String(16), nullable=False),
    sa.Column("started_at", _Moment, nullable=False),
    sa.Column("correlation_id", sa.Uuid, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("first_keys", sa.JSON, nullable=False),
    sa.Column("lease_until", _Moment),
    sa.Column("rollback_number", sa.Integer, nullable=False),
    sa.Column("rollback_at", _Moment),
    sa.Column("rollback_reason", sa.Text),
    sa.Column("rollback_stage", sa.String(16)),
    sa.Column("attempt", sa.Integer, nullable=False),
)
chunks = sa.Table(
    "mig_chunk",
    _metadata,
    sa.Column("migration_id", sa.String(255), primary_key=True),
    sa.Column("entity", sa.String(128), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("row_count", sa.Integer, nullable=False),
    sa.Column("child_count", sa.Integer, nullable=False),
    sa.Column("counts", sa.JSON, nullable=False),
    sa.Column("touched", sa.JSON, nullable=False),
    sa.Column("loaded_at", _Moment, nullable=False),
    sa.Column("events_appended", sa.Boolean, nullable=False),
    sa.Column("undone_by", sa.Integer, nullable=False),
    sa.Column("undone_since", sa.Integer, nullable=False),
    sa.Column("undone_at", _Moment),
    sa.Column("undone", sa.JSON),
    sa.Column("undo_announced", sa.Integer, nullable=False),
)
"""`counts` says what became of the records, `touched` how many rows of each table changed, `undone` what
the rollback numbered `undone_by` put back of them; `undone_since` is the first that touched the chunk."""

written = sa.Table(
    "mig_written",
    _metadata,
    sa.Column("migration_id", sa.String(255), primary_key=True),
    sa.Column("entity", sa.String(128), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("table_name", sa.String(128), primary_key=True),
    sa.Column("content", sa.LargeBinary, nullable=False),
)
left = sa.Table(
    "mig_left",
    _metadata,
    sa.Column("migration_id", sa.String(255), primary_key=True),
    sa.Column("entity", sa.String(128), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("record_key", sa.Text, primary_key=True),
    sa.Column("state", sa.String(8), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("undone_by", sa.Integer, nullable=False),
)
"""Records that a rollback did not take back: `conflict` (left as it is), `gone` (others deleted all of
it), or `undone` by a later rollback."""

quarantine = sa.Table(
    "mig_quarantine",
    _metadata,
    sa.Column("migration_id", sa.String(255), primary_key=True),
    sa.Column("entity", sa.String(128), primary_key=True),
    sa.Column("source_key", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("rule", sa.String(32), nullable=False),
    sa.Column("column_name", sa.String(128), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
)
"""The records of a chunk that the target itself refused (`refusals.py`)."""

WORK_TABLES = frozenset(_metadata.tables)


@dataclass(frozen=True)
class RunRow:
    """One run, as the target knows it. Status: running, completed, failed, rolling_back, rolled_back.

    `first_keys` says for each table that is written the highest key it held when the run began: records
    without a key of their own are numbered from there. `attempt` counts the rollbacks to an earlier
    stage, after which stages and records are told anew.
    """

    migration_id: str
    mapping_sha256: str
    status: str
    stage: str
    started_at: datetime
    correlation_id: UUID
    metadata: dict[str, Any]
    first_keys: dict[str, int] = field(default_factory=dict)
    rollback_number: int = 0
    rollback_at: datetime | None = None
    rollback_reason: str | None = None
    rollback_stage: str | None = None
    attempt: int = 0


_RUN_COLUMNS = [runs.c[name] for name in RunRow.__dataclass_fields__]


def create_work_tables(connection: sa.Connection) -> None:
    """Create what is missing of the work tables."""
    is_new = not sa.inspect(connection).has_table(written.name)
    _metadata.create_all(connection)
    if is_new and connection.dialect.name == "postgresql":
        # What is packed already is not worth PostgreSQL's compression, which costs more than the insert.
        connection.exec_driver_sql("ALTER TABLE mig_written ALTER COLUMN content SET STORAGE EXTERNAL")


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
    statement = sa.select(runs.c.migration_id, runs.c.started_at, runs.c.lease_until).where(
        runs.c.migration_id != migration_id, runs.c.lease_until > datetime.now(UTC)
    )
    held = connection.execute(statement.limit(1)).one_or_none()
    if held is not None:
        raise TargetBusyError(held.migration_id, since=held.started_at, until=held.lease_until)


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


def loaded_chunk(
    connection: sa.Connection, migration_id: str, entity: str, number: int
) -> sa.Row[Any] | None:
    """One chunk; None while it is not loaded. To look for it among all would cost ever more to the end."""
    return connection.execute(sa.select(chunks).where(_is_chunk(migration_id, entity, number))).one_or_none()


def _is_chunk(migration_id: str, entity: str, number: int) -> sa.ColumnElement[bool]:
    place = (chunks.c.migration_id == migration_id, chunks.c.entity == entity, chunks.c.number == number)
    return sa.and_(*place)


def any_chunk_loaded(connection: sa.Connection, migration_id: str) -> bool:
    """Whether the run has written any record."""
    statement = sa.select(chunks.c.number).where(chunks.c.migration_id == migration_id).limit(1)
    return connection.scalar(statement) is not None


def mark_chunk(
    connection: sa.Connection, migration_id: str, entity: str, number: int, **changes: Any
) -> None:
    """Change the state of one chunk."""
    connection.execute(sa.update(chunks).where(_is_chunk(migration_id, entity, number)).values(**changes))


def forget_chunks(connection: sa.Connection, migration_id: str) -> None:
    """Forget what the run wrote, when all of it was taken back and it is to be loaded anew."""
    for table in (chunks, written, left, quarantine):
        connection.execute(sa.delete(table).where(table.c.migration_id == migration_id))


def save_written(
    connection: sa.Connection, migration_id: str, entity: str, number: int, *, table: str, frame: pl.DataFrame
) -> None:
    """Keep what a chunk did to a table; see WRITTEN."""
    record = pl.when(pl.col("record_key") != pl.col("target_key")).then("record_key")
    packed = frame.select(*WRITTEN).with_columns(record, pl.col("row_hash", "after_hash").str.decode("hex"))
    buffer = io.BytesIO()
    packed.write_ipc(buffer, compression="lz4")
    connection.execute(
        sa.insert(written).values(
            migration_id=migration_id,
            entity=entity,
            number=number,
            table_name=table,
            content=buffer.getvalue(),
        )
    )


def written_by(
    connection: sa.Connection, migration_id: str, entity: str, number: int
) -> dict[str, pl.DataFrame]:
    """What a chunk did to each table; see WRITTEN."""
    statement = sa.select(written.c.table_name, written.c.content).where(
        written.c.migration_id == migration_id, written.c.entity == entity, written.c.number == number
    )
    return {name: _unpacked(content) for name, content in connection.execute(statement)}


def written_to(connection: sa.Connection, migration_id: str, table: str) -> Iterator[pl.DataFrame]:
    """What the run did to a table, a frame for each chunk in the order of loading; see WRITTEN."""
    place = sa.and_(written.c.migration_id == migration_id, written.c.table_name == table)
    statement = sa.select(written.c.entity, written.c.number).where(place)
    for entity, number in connection.execute(statement.order_by(*statement.selected_columns)).all():
        one = sa.and_(place, written.c.entity == entity, written.c.number == number)
        yield _unpacked(connection.scalar(sa.select(written.c.content).where(one)) or b"")


def id_map(connection: sa.Connection, migration_id: str, entity: str, table: str) -> Iterator[pl.DataFrame]:
    """`source_key` and `target_key` of an entity's records, a frame for each chunk in order."""
    for number in loaded_chunks(connection, migration_id, entity):
        frame = written_by(connection, migration_id, entity, number)[table]
        yield frame.filter(pl.col("source_key").is_not_null()).select("source_key", "target_key")


def _unpacked(content: bytes) -> pl.DataFrame:
    frame = pl.read_ipc(io.BytesIO(bytes(content)))
    record = pl.coalesce("record_key", "target_key").alias("record_key")
    return frame.with_columns(record, pl.col("row_hash", "after_hash").bin.encode("hex")).select(*WRITTEN)


def records_left(
    connection: sa.Connection, migration_id: str, entity: str, number: int
) -> dict[str, sa.Row[Any]]:
    """The records of a chunk that rollbacks left behind, by key."""
    statement = sa.select(left).where(
        left.c.migration_id == migration_id, left.c.entity == entity, left.c.number == number
    )
    return {row.record_key: row for row in connection.execute(statement)}
