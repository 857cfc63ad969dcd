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
from pipelines.migration.schema import Column, Table, reflect_tables
from pipelines.migration.source import KeysetSnapshot
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


class SqliteSnapshot(KeysetSnapshot):
    """Reads inside one transaction."""

    def page(
        self, statement: sa.Select[Any], columns: list[Column], key: Sequence[str]
    ) -> tuple[pl.DataFrame, Sequence[Any] | None]:
        fetched, names = self._fetch(statement), [column.name for column in columns]
        last = [fetched[-1][names.index(name)] for name in key] if fetched else None
        return frame_of(columns, fetched), last

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
