"""What every SQL target does alike, in SQLAlchemy Core; a kind of database adds what differs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import polars as pl
import sqlalchemy as sa

from pipelines.migration.errors import TargetError
from pipelines.migration.keys import key_frame, key_text, key_value
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
    def together(
        self, columns: Sequence[Column], compared: Sequence[sa.ColumnElement[Any]], rows: pl.DataFrame, /
    ) -> Any:
        """Whether what is compared of these columns is together one of any number of rows."""

    @abstractmethod
    def read_frame(self, columns: Sequence[Column], statement: sa.Select[Any]) -> pl.DataFrame:
        """The rows of a statement over these columns, in their staged types, and `_ill_typed`."""

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
        (name,) = table.key
        statement: sa.Select[Any] = sa.select(sa.func.max(sa.column(name))).select_from(sa.table(table.name))
        return int(self._connection.scalar(statement) or 0)

    def find(self, table: Table, unique: Unique, values: pl.DataFrame) -> pl.DataFrame:
        """See TargetTransaction.find."""
        wanted = values.select(unique.columns).drop_nulls().unique()
        wanted = wanted.with_columns(pl.col(name).str.to_lowercase() for name in unique.folded)
        compared: list[sa.ColumnElement[Any]] = [
            sa.func.lower(sa.column(name)) if name in unique.folded else sa.column(name)
            for name in unique.columns
        ]
        picked = table.pick([*unique.columns, *table.key])
        condition = self._among(table.pick(unique.columns), compared, wanted)
        frame = self.read_frame(picked, self._select(table, picked).where(condition))
        return frame.select(*unique.columns, key_value(table.key_columns).alias("_found"))

    def delete(self, table: Table, keys: Sequence[Any]) -> int:
        """See TargetTransaction.delete."""
        statement = sa.delete(sa.table(table.name)).where(self.has_key(table, keys))
        return self._connection.execute(statement).rowcount

    def referring(
        self, table: Table, columns: tuple[str, ...], keys: Sequence[Any]
    ) -> list[tuple[str, str | None]]:
        """See TargetTransaction.referring."""
        referred, picked = _labelled(table, columns, "referred")
        own, picked_too = _labelled(table, table.key, "own")
        statement = sa.select(*picked, *picked_too).select_from(sa.table(table.name))
        frame = self.read_frame([*referred, *own], statement.where(self.holds(table, columns, keys)))
        own_key = key_text(own) if own else pl.lit(None, pl.String)
        return frame.select(key_text(referred).alias("referred"), own_key.alias("own")).rows()

    def scan(self, table: Table, columns: list[str], *, rows: int) -> Iterator[pl.DataFrame]:
        """See TargetTransaction.scan."""
        picked = table.pick(columns)
        return self.scan_frames(picked, self._select(table, picked), rows)

    def rows(
        self, table: Table, columns: list[str], *, of: tuple[str, ...], among: Sequence[Any]
    ) -> pl.DataFrame:
        """See TargetTransaction.rows."""
        picked = table.pick(columns)
        statement = self._select(table, picked).where(self.holds(table, of, among))
        return self.read_frame(picked, statement.order_by(*map(sa.column, table.key)))

    def has_key(self, table: Table, keys: Sequence[Any]) -> Any:
        """Whether a row has one of these keys."""
        return self.holds(table, table.key, keys)

    def holds(self, table: Table, names: Sequence[str], keys: Sequence[Any]) -> Any:
        """Whether these columns of a row have one of these keys."""
        columns = table.pick(names)
        return self._among(columns, [*map(sa.column, names)], key_frame(columns, keys))

    def _among(
        self, columns: Sequence[Column], compared: Sequence[sa.ColumnElement[Any]], rows: pl.DataFrame
    ) -> Any:
        if len(columns) == 1:
            return self.among(columns[0].kind, compared[0], rows.to_series().to_list())
        return self.together(columns, compared, rows)

    def _select(self, table: Table, columns: Sequence[Column]) -> sa.Select[Any]:
        return sa.select(*(sa.column(column.name) for column in columns)).select_from(sa.table(table.name))


def _labelled(
    table: Table, names: Sequence[str], label: str
) -> tuple[list[Column], list[sa.ColumnElement[Any]]]:
    """The columns of a key under names of their own, as they are read and as they are asked for: one column
    as the database's own text, whatever stands in it."""
    columns = [replace(column, name=f"{label}{place}") for place, column in enumerate(table.pick(names))]
    asked: list[sa.ColumnElement[Any]] = [*map(sa.column, names)]
    if len(columns) == 1:
        columns, asked = [replace(columns[0], kind="text")], [sa.cast(asked[0], sa.Text)]
    return columns, [part.label(column.name) for part, column in zip(asked, columns, strict=True)]


def reflect_references(connection: sa.Connection, table: str) -> list[Reference]:
    """See Target.references_to."""
    inspector = sa.inspect(connection)
    found = [
        (name, tuple(key["constrained_columns"]), tuple(key["referred_columns"]))
        for (_, name), keys in inspector.get_multi_foreign_keys().items()
        for key in keys
        if key["referred_table"] == table and name not in WORK_TABLES
    ]
    tables = reflect_tables(connection, {name for name, _, _ in found})
    return [Reference(tables[name], columns, referred) for name, columns, referred in found]
