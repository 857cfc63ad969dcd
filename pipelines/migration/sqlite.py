"""SQLite as a source: opened read-only, so that it is never written to and never made.

SQLite's columns hold values of any type. A value that is not of its column's declared type becomes
null and is named in `_ill_typed`, so that the validate stage quarantines the record.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
import sqlalchemy as sa

from pipelines.migration.errors import SourceError
from pipelines.migration.schema import Column, Table, reflect_tables

_DATETIME_FORMS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f")


class SqliteSource:
    """A SQLite file. Raises SourceError when it is not there."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise SourceError(f"the source file {path.name!r} does not exist", stage="start")
        self._path = path
        self._engine = sa.create_engine("sqlite://", creator=self._connect, poolclass=sa.NullPool)

    def _connect(self) -> sqlite3.Connection:
        uri = f"file:{quote(str(self._path.resolve()))}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        connection.text_factory = _text_or_bytes
        return connection

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
            fetched = self._connection.execute(page).fetchall()
            if fetched:
                yield _frame([table.columns[name] for name in columns], fetched)
                last = fetched[-1][columns.index(key)]
            if len(fetched) < rows:
                return


def _frame(columns: list[Column], rows: Sequence[Sequence[Any]]) -> pl.DataFrame:
    typed, ill = {}, []
    for column, values in zip(columns, zip(*rows, strict=True), strict=True):
        series, is_ill = _typed(column, values)
        typed[column.name] = series.alias(column.name)
        if is_ill.any():
            ill.append(pl.when(pl.lit(is_ill)).then(pl.lit(column.name)))
    frame = pl.DataFrame(typed)
    if not ill:
        return frame.with_columns(pl.lit(None, pl.String).alias("_ill_typed"))
    names = pl.concat_str(ill, separator=",", ignore_nulls=True)
    return frame.with_columns(pl.when(names != "").then(names).alias("_ill_typed"))


def _typed(column: Column, values: Sequence[Any]) -> tuple[pl.Series, pl.Series]:
    """The values in the column's type, and a mask of those that are not of it."""
    is_of_type, store = _STORED.get(column.kind, (str, pl.String()))
    kept = [value if isinstance(value, is_of_type) else None for value in values]
    raw = pl.Series(kept, dtype=store)
    series = _READ.get(column.kind, _as_it_is)(raw)
    given = pl.Series([value is not None for value in values], dtype=pl.Boolean)
    return series, given & series.is_null()


_STORED: dict[str, tuple[type | tuple[type, ...], pl.DataType]] = {
    "integer": (int, pl.Int64()),
    "boolean": (int, pl.Int64()),
    "float": ((int, float), pl.Float64()),
    "binary": (bytes, pl.Binary()),
}


def _text_or_bytes(raw: bytes) -> str | bytes:
    """Text that is not UTF-8 stays bytes, which no text column takes."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _as_it_is(raw: pl.Series) -> pl.Series:
    return raw


def _boolean(raw: pl.Series) -> pl.Series:
    return raw.replace_strict({0: False, 1: True}, default=None, return_dtype=pl.Boolean())


def _moment(raw: pl.Series) -> pl.Series:
    value = pl.col("v")
    forms = [value.str.to_datetime(form, strict=False, time_unit="us") for form in _DATETIME_FORMS]
    return raw.to_frame("v").select(pl.coalesce(forms)).to_series()


def _date(raw: pl.Series) -> pl.Series:
    return raw.str.to_date("%Y-%m-%d", strict=False)


_READ: dict[str, Callable[[pl.Series], pl.Series]] = {
    "boolean": _boolean,
    "datetime": _moment,
    "datetime_tz": lambda raw: _moment(raw).dt.replace_time_zone("UTC"),
    "date": _date,
}
