"""Sources: what the engine reads from, in one consistent snapshot, as frames of typed columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import sqlalchemy as sa

from pipelines.migration.errors import SourceError
from pipelines.migration.schema import Column, Table


class Snapshot(Protocol):
    """One consistent view of the source: every read sees the same moment."""

    def count(self, table: str) -> int:
        """The number of rows."""

    def chunks(
        self, table: Table, *, key: tuple[str, ...], columns: tuple[str, ...], rows: int
    ) -> Iterator[pl.DataFrame]:
        """All rows in the database's own order of the key, at most `rows` in a frame, with one more column
        `_ill_typed`: the names, joined by commas, of the columns whose value was not of their type and
        became null."""


class KeysetSnapshot(ABC):
    """A snapshot of a database that is read in pages by key."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def count(self, table: str) -> int:
        """See Snapshot.count."""
        return int(self._connection.scalar(sa.select(sa.func.count()).select_from(sa.table(table))) or 0)

    def chunks(
        self, table: Table, *, key: tuple[str, ...], columns: tuple[str, ...], rows: int
    ) -> Iterator[pl.DataFrame]:
        """See Snapshot.chunks."""
        order = _indexed(table, key)
        selected: list[sa.ColumnClause[Any]] = [sa.column(name) for name in columns]
        pages = sa.select(*selected).select_from(sa.table(table.name)).limit(rows)
        first = pages.order_by(*map(sa.column, order))
        last: Sequence[Any] | None = None
        while True:
            page = first if last is None else first.where(_beyond(order, last))
            frame, last = self.page(page, table.pick(columns), order)
            if not frame.is_empty():
                yield frame
            if frame.height < rows or last is None or None in last:
                return

    @abstractmethod
    def page(
        self, statement: sa.Select[Any], columns: list[Column], key: Sequence[str]
    ) -> tuple[pl.DataFrame, Sequence[Any] | None]:
        """The rows of a statement as a chunk, and the last one's key as the database takes it."""


def _indexed(table: Table, key: tuple[str, ...]) -> tuple[str, ...]:
    """The key's columns in the order of the index that holds them, where there is one."""
    return next((held.columns for held in table.unique if {*held.columns} == {*key}), key)


def _beyond(names: Sequence[str], last: Sequence[Any]) -> sa.ColumnElement[bool]:
    """Whether a row comes after the one of this key, in the order of these columns: one comparison of
    rows, which an index over them answers."""
    columns: list[sa.ColumnElement[Any]] = [*map(sa.column, names)]
    is_after: sa.ColumnElement[bool] = columns[0] > last[0]
    if len(columns) > 1:
        is_after = sa.tuple_(*columns) > sa.tuple_(*map(sa.literal, last))
    return is_after


class Source(Protocol):
    """A database to migrate from; it is never written to."""

    def describe(self) -> dict[str, str]:
        """Kind and database name, as events state them: no host, no user, no password."""

    def tables(self, names: set[str]) -> dict[str, Table]:
        """Those of the named tables that exist. Raises SourceError when it cannot be read."""

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """Open a snapshot; leaving it closes every connection."""


def open_source(url: str, *, on_wait: Callable[[str], None] | None = None) -> Source:
    """The source of a URL; nothing is connected yet. `on_wait` is as for a target, see `open_target`.

    Raises SourceError for a malformed URL, an unknown kind of database, or a file that is not there.
    """
    from pipelines.migration.csvfile import CsvSource
    from pipelines.migration.postgres_source import PostgresSource
    from pipelines.migration.sqlite import SqliteSource

    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise SourceError(
            "the source is not a database URL such as sqlite:///legacy.db", stage="start"
        ) from None
    match parsed.get_backend_name():
        case "sqlite":
            return SqliteSource(Path(parsed.database or ""))
        case "postgresql":
            return PostgresSource(parsed.set(drivername="postgresql+psycopg2"), on_wait=on_wait)
        case "csv":
            return CsvSource(Path(parsed.database or ""))
        case kind:
            raise SourceError(f"sources of kind {kind!r} are not supported in this version", stage="start")
