"""Sources: what the engine reads from, in one consistent snapshot, as frames of typed columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
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
        self, table: Table, *, key: str, columns: tuple[str, ...], rows: int
    ) -> Iterator[pl.DataFrame]:
        """All rows in key order, at most `rows` in a frame, with one more column `_ill_typed`: the
        names, joined by commas, of the columns whose value was not of their type and became null."""


class KeysetSnapshot(ABC):
    """A snapshot of a database that is read in pages by key."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def count(self, table: str) -> int:
        """See Snapshot.count."""
        return int(self._connection.scalar(sa.select(sa.func.count()).select_from(sa.table(table))) or 0)

    def chunks(
        self, table: Table, *, key: str, columns: tuple[str, ...], rows: int
    ) -> Iterator[pl.DataFrame]:
        """See Snapshot.chunks."""
        selected: list[sa.ColumnClause[Any]] = [sa.column(name) for name in columns]
        first = sa.select(*selected).select_from(sa.table(table.name)).order_by(sa.column(key)).limit(rows)
        last: Any = None
        while True:
            page = first if last is None else first.where(sa.column(key) > last)
            frame, last = self.page(page, [table.columns[name] for name in columns], key)
            if not frame.is_empty():
                yield frame
            if frame.height < rows or last is None:
                return

    @abstractmethod
    def page(self, statement: sa.Select[Any], columns: list[Column], key: str) -> tuple[pl.DataFrame, Any]:
        """The rows of a statement as a chunk, and the last one's key as the database takes it."""


class Source(Protocol):
    """A database to migrate from; it is never written to."""

    def describe(self) -> dict[str, str]:
        """Kind and database name, as events state them: no host, no user, no password."""

    def tables(self, names: set[str]) -> dict[str, Table]:
        """Those of the named tables that exist. Raises SourceError when it cannot be read."""

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """Open a snapshot; leaving it closes every connection."""


def open_source(url: str) -> Source:
    """The source of a URL; nothing is connected yet.

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
            return PostgresSource(parsed.set(drivername="postgresql+psycopg2"))
        case "csv":
            return CsvSource(Path(parsed.database or ""))
        case kind:
            raise SourceError(f"sources of kind {kind!r} are not supported in this version", stage="start")
