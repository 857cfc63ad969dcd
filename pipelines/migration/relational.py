"""What every SQL target does alike, in SQLAlchemy Core; a kind of database adds what differs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import polars as pl
import sqlalchemy as sa

from pipelines.migration.errors import TargetError
from pipelines.migration.schema import Column, Table, Unique, reflect_tables
from pipelines.migration.target import Reference
from pipelines.migration.worktables import WORK_TABLES


class RelationalTransaction(ABC):
    """One open transaction. A subclass has `lock`, writing, images and hashes of its own."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    @property
    def connection(self) -> sa.Connection:
        """See TargetTransaction.connection."""
        return self._connection

    @abstractmethod
    def among(self, kind: str, column: sa.ColumnElement[Any], values: Sequence[Any], /) -> Any:
        """Whether a column of this kind is one of any number of values."""

    @abstractmethod
    def read_frame(self, columns: Sequence[Column], statement: sa.Select[Any]) -> pl.DataFrame:
        """The rows of a statement over these columns, in their staged types."""

    @abstractmethod
    def scan_frames(
        self, columns: Sequence[Column], statement: sa.Select[Any], rows: int
    ) -> Iterator[pl.DataFrame]:
        """The same, a number of rows at a time."""

    @abstractmethod
    def images(self, table: Table, keys: Sequence[Any]) -> dict[str, str]:
        """See TargetTransaction.images."""

    @abstractmethod
    def refused(self, error: BaseException, /) -> TargetError:
        """What an error of the database means."""

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """See TargetTransaction.savepoint."""
        try:
            with self._connection.begin_nested():
                yield
        except sa.exc.DBAPIError as error:
            raise self.refused(error.orig or error) from None

    @abstractmethod
    def check_deferred(self) -> None:
        """See TargetTransaction.check_deferred."""

    def is_empty(self, table: Table) -> bool:
        """See TargetTransaction.is_empty."""
        statement = sa.select(sa.literal(1)).select_from(sa.table(table.name)).limit(1)
        return self._connection.execute(statement).first() is None

    def count(self, table: Table) -> int:
        """See TargetTransaction.count."""
        statement = sa.select(sa.func.count()).select_from(sa.table(table.name))
        return int(self._connection.scalar(statement) or 0)

    def highest_key(self, table: Table) -> int:
        """See TargetTransaction.highest_key."""
        statement = sa.select(sa.func.max(key_of(table))).select_from(sa.table(table.name))
        return int(self._connection.scalar(statement) or 0)

    def find(self, table: Table, unique: Unique, values: pl.DataFrame) -> pl.DataFrame:
        """See TargetTransaction.find."""
        (name,) = unique.columns
        column, wanted = table.columns[name], values[name].drop_nulls().unique()
        compared: sa.ColumnElement[Any] = sa.column(name)
        if unique.folds_case:
            compared, wanted = sa.func.lower(compared), wanted.str.to_lowercase()
        picked = [column] if name == table.key else [column, table.columns[table.key or ""]]
        statement = self._select(table, picked).where(self.among(column.kind, compared, wanted.to_list()))
        frame = self.read_frame(picked, statement)
        return frame.select(pl.col(name), pl.col(table.key or "").alias("_found"))

    def delete(self, table: Table, keys: Sequence[Any]) -> int:
        """See TargetTransaction.delete."""
        statement = sa.delete(sa.table(table.name)).where(self.has_key(table, keys))
        return self._connection.execute(statement).rowcount

    def referring(self, reference: Reference, keys: Sequence[Any]) -> list[tuple[str, str | None]]:
        """See TargetTransaction.referring."""
        column: sa.ColumnClause[Any] = sa.column(reference.column)
        own = sa.column(reference.table.key) if reference.table.key else sa.null()
        statement = sa.select(sa.cast(column, sa.Text), sa.cast(own, sa.Text)).select_from(
            sa.table(reference.table.name)
        )
        kind = reference.table.columns[reference.column].kind
        rows = self._connection.execute(statement.where(self.among(kind, column, keys)))
        return [(referred, own_key) for referred, own_key in rows]

    def scan(self, table: Table, columns: list[str], *, rows: int) -> Iterator[pl.DataFrame]:
        """See TargetTransaction.scan."""
        picked = [table.columns[name] for name in columns]
        return self.scan_frames(picked, self._select(table, picked), rows)

    def rows(self, table: Table, columns: list[str], *, of: str, among: Sequence[Any]) -> pl.DataFrame:
        """See TargetTransaction.rows."""
        picked = [table.columns[name] for name in columns]
        wanted = self.among(table.columns[of].kind, sa.column(of), among)
        return self.read_frame(picked, self._select(table, picked).where(wanted).order_by(key_of(table)))

    def has_key(self, table: Table, keys: Sequence[Any]) -> Any:
        """Whether a row has one of these keys."""
        return self.among(table.columns[table.key or ""].kind, key_of(table), keys)

    def _select(self, table: Table, columns: Sequence[Column]) -> sa.Select[Any]:
        return sa.select(*(sa.column(column.name) for column in columns)).select_from(sa.table(table.name))


def key_of(table: Table) -> sa.ColumnClause[Any]:
    """The table's key column."""
    assert table.key is not None
    return sa.column(table.key)


def reflect_references(connection: sa.Connection, table: str) -> list[Reference]:
    """See Target.references_to."""
    inspector = sa.inspect(connection)
    found = [
        (name, key["constrained_columns"][0])
        for (_, name), keys in inspector.get_multi_foreign_keys().items()
        for key in keys
        if key["referred_table"] == table and len(key["constrained_columns"]) == 1
    ]
    tables = reflect_tables(connection, {name for name, _ in found})
    return [Reference(tables[name], column) for name, column in found if name not in WORK_TABLES]
