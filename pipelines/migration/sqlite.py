"""SQLite as a source: opened read-only, so that it is never written to and never made."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
import sqlalchemy as sa

from pipelines.migration.errors import SourceError
from pipelines.migration.schema import Table, reflect_tables
from pipelines.migration.sqlite_values import frame_of, text_or_bytes


class SqliteSource:
    """A SQLite file. Raises SourceError when it is not there."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise SourceError(f"the source file {path.name!r} does not exist", stage="start")
        self._path = path
        self._engine = sa.create_engine("sqlite://", creator=self._connect, poolclass=sa.NullPool)

    def _connect(self) -> sqlite3.Connection:
        uri = f"file:{quote(str(self._path.resolve()))}?mode=ro"
        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)

    def describe(self) -> dict[str, str]:
        return {"kind": "sqlite", "database": self._path.name}

    def tables(self, names: set[str]) -> dict[str, Table]:
        with self._connection() as connection:
            return reflect_tables(connection, names)

    @contextmanager
    def snapshot(self) -> Iterator[SqliteSnapshot]:
        """One read transaction: later writes of others are not seen."""
        with self._connection() as connection:
            connection.exec_driver_sql("BEGIN")
            try:
                yield SqliteSnapshot(connection)
            finally:
                connection.exec_driver_sql("ROLLBACK")

    @contextmanager
    def _connection(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except sa.exc.DBAPIError as error:
            kind = type(error.orig).__name__
            raise SourceError(
                f"the source {self._path.name!r} cannot be read ({kind})", resumable=True
            ) from None


class SqliteSnapshot:
    """Reads inside one transaction."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def count(self, table: str) -> int:
        return int(self._connection.scalar(sa.select(sa.func.count()).select_from(sa.table(table))) or 0)

    def chunks(
        self, table: Table, *, key: str, columns: tuple[str, ...], rows: int
    ) -> Iterator[pl.DataFrame]:
        selected: list[sa.ColumnClause[Any]] = [sa.column(name) for name in columns]
        statement = (
            sa.select(*selected).select_from(sa.table(table.name)).order_by(sa.column(key)).limit(rows)
        )
        last: Any = None
        while True:
            page = statement if last is None else statement.where(sa.column(key) > last)
            fetched = self._fetch(page)
            if fetched:
                yield frame_of([table.columns[name] for name in columns], fetched)
                last = fetched[-1][columns.index(key)]
            if len(fetched) < rows:
                return

    def _fetch(self, statement: sa.Select[Any]) -> Sequence[Sequence[Any]]:
        """The rows as the driver makes them; a page with text that is not UTF-8 is read a second time."""
        driver: Any = self._connection.connection.dbapi_connection
        for factory in (str, text_or_bytes):
            driver.text_factory = factory
            try:
                return self._rows(statement)
            except (sqlite3.OperationalError, UnicodeDecodeError) as error:
                if factory is text_or_bytes or "UTF-8" not in str(error).upper():
                    raise sa.exc.DBAPIError(None, None, error) from None
        raise AssertionError("unreachable")

    def _rows(self, statement: sa.Select[Any]) -> Sequence[Sequence[Any]]:
        cursor: Any = self._connection.execute(statement).cursor
        fetched: Sequence[Sequence[Any]] = cursor.fetchall()
        return fetched
