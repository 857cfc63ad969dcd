"""Values of PostgreSQL by COPY: frames as CSV text, and CSV text as typed frames."""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import polars as pl
import psycopg2.sql as pgsql
import sqlalchemy as sa

from pipelines.migration.schema import Column


def copy_text(frame: pl.DataFrame) -> io.BytesIO:
    """What `COPY … FROM STDIN WITH (FORMAT csv, NULL '\\N')` reads."""
    buffer = io.BytesIO()
    frame.select(_copy_form(series) for series in frame).write_csv(
        buffer, include_header=False, null_value=r"\N", quote_style="non_numeric"
    )
    buffer.seek(0)
    return buffer


def select_out(connection: sa.Connection, statement: sa.Select[Any], columns: Sequence[str]) -> pl.DataFrame:
    """The rows of a statement as text under these names, by COPY, which SQLAlchemy does not know."""
    buffer = io.BytesIO()
    _copy_out(connection, statement, buffer)
    return _text_frame(buffer.getvalue(), columns)


class Outflow:
    """The rows of a statement as text, by one COPY that a thread reads ahead of whoever takes the pages.

    The connection does nothing else until the last page was taken, or until `end`.
    """

    def __init__(
        self, connection: sa.Connection, statement: sa.Select[Any], columns: Sequence[str], rows: int
    ) -> None:
        self._connection, self._statement = connection, statement
        self._columns, self._size = columns, rows
        self._rows: list[bytes] = []
        self._full: queue.Queue[bytes | None] = queue.Queue(_PAGES_AHEAD)
        self._ended = threading.Event()
        reader = ThreadPoolExecutor(1, thread_name_prefix="outflow")
        self._reading = reader.submit(self._read)
        reader.shutdown(wait=False)

    def pages(self) -> Iterator[pl.DataFrame]:
        """Frames of at most so many rows; once. Raises what the database raises."""
        try:
            while (page := self._full.get()) is not None:
                yield _text_frame(page, self._columns)
            self._reading.result()
        finally:
            self.end()

    def end(self) -> None:
        """Take no more. What is left is read and thrown away, for to cancel it would undo the transaction;
        then the connection is free again."""
        self._ended.set()
        while not self._reading.done():
            with suppress(queue.Empty):
                self._full.get(timeout=_LOOK_AGAIN_S)

    def write(self, row: bytes) -> None:
        """Take one row, which is how the driver hands them over."""
        self._rows.append(row)
        if len(self._rows) == self._size:
            self._hand_over()

    def _hand_over(self) -> None:
        page = b"".join(self._rows)
        self._rows.clear()
        if page and not self._ended.is_set():
            self._full.put(page)

    def _read(self) -> None:
        try:
            _copy_out(self._connection, self._statement, self)
            self._hand_over()
        finally:
            self._full.put(None)


_PAGES_AHEAD = 2
_LOOK_AGAIN_S = 0.1


def _copy_out(connection: sa.Connection, statement: sa.Select[Any], file: Any) -> None:
    compiled = statement.compile(dialect=connection.dialect)
    raw: Any = connection.connection
    with raw.cursor() as cursor:
        query = pgsql.SQL(cursor.mogrify(str(compiled), compiled.params).decode())
        cursor.copy_expert(pgsql.SQL("COPY ({}) TO STDOUT WITH (FORMAT csv)").format(query), file)


def _text_frame(text: bytes, columns: Sequence[str]) -> pl.DataFrame:
    if not text:
        return pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
    return pl.read_csv(
        text,  # a null is an empty field, an empty text a quoted one
        has_header=False,
        new_columns=[*columns],
        infer_schema=False,
    )


def array_texts(values: pl.Series) -> list[str]:
    """The values as PostgreSQL reads them, as elements of an array or literals of no type."""
    texts: list[str] = _copy_form(values).cast(pl.String).to_list()
    return texts


def _copy_form(series: pl.Series) -> pl.Series:
    """What CSV cannot write as PostgreSQL reads it."""
    if isinstance(series.dtype, pl.Datetime):
        zone = "+00" if series.dtype.time_zone else ""
        return series.dt.to_string(f"%Y-%m-%d %H:%M:%S%.6f{zone}")
    if series.dtype == pl.Binary():
        return (r"\x" + series.to_frame().select(pl.all().bin.encode("hex")).to_series()).alias(series.name)
    return series


def typed_frame(page: pl.DataFrame, columns: Sequence[Column]) -> pl.DataFrame:
    """The text in its columns' types, and `_ill_typed`: an infinite date is a moment nobody can carry."""
    typed = page.select(_READ.get(column.kind, _as_it_is)(pl.col(column.name)) for column in columns)
    ill = [
        pl.when(pl.lit(page[column.name].is_not_null() & typed[column.name].is_null())).then(
            pl.lit(column.name)
        )
        for column in columns
        if typed[column.name].null_count() != page[column.name].null_count()
    ]
    if not ill:
        return typed.with_columns(pl.lit(None, pl.String).alias("_ill_typed"))
    names = pl.concat_str(ill, separator=",", ignore_nulls=True)
    return typed.with_columns(pl.when(names != "").then(names).alias("_ill_typed"))


def _as_it_is(text: pl.Expr) -> pl.Expr:
    return text


def _moment(text: pl.Expr) -> pl.Expr:
    return text.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", strict=False, time_unit="us")


def _zoned(text: pl.Expr) -> pl.Expr:
    return _moment(text.str.strip_suffix("+00")).dt.replace_time_zone("UTC")


_READ: dict[str, Callable[[pl.Expr], pl.Expr]] = {
    "integer": lambda text: text.cast(pl.Int64, strict=False),
    "float": lambda text: text.cast(pl.Float64, strict=False),
    "boolean": lambda text: text == "t",
    "datetime": _moment,
    "datetime_tz": _zoned,
    "date": lambda text: text.str.to_date("%Y-%m-%d", strict=False),
    "binary": lambda text: text.str.strip_prefix("\\x").str.decode("hex", strict=False),
}
