"""SQLite as a target: one writer, foreign keys on, each chunk one transaction of prepared statements."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
import sqlalchemy as sa

from pipelines.migration.errors import RecordRefusedError, TargetError, TargetLockedError
from pipelines.migration.keys import key_text
from pipelines.migration.relational import RelationalTransaction, reflect_references
from pipelines.migration.schema import Column, Table, reflect_tables
from pipelines.migration.sqlite_values import frame_of, stored_rows, text_or_bytes
from pipelines.migration.sqlite_waits import BUSY_S, holder_of
from pipelines.migration.target import Reference


class SqliteTarget:
    """A SQLite file that is there already. Transactions of one thread nest: the outer one is joined."""

    def __init__(self, path: Path, *, on_wait: Callable[[str], None] | None = None) -> None:
        if not path.is_file():
            raise TargetError(f"the target file {path.name!r} does not exist", stage="start")
        self._path, self._on_wait = path, on_wait
        self._engine = sa.create_engine("sqlite://", creator=self._connect, poolclass=sa.NullPool)
        self._open = threading.local()

    def _connect(self) -> sqlite3.Connection:
        uri = f"file:{quote(str(self._path.resolve()))}?mode=rw"
        connection = sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_S
        )
        connection.execute("PRAGMA foreign_keys = ON")
        connection.text_factory = text_or_bytes
        return connection

    def describe(self) -> dict[str, str]:
        return {"kind": "sqlite", "database": self._path.name}

    def tables(self, names: set[str]) -> dict[str, Table]:
        with self.transaction() as transaction:
            return reflect_tables(transaction.connection, names)

    def references_to(self, table: str) -> list[Reference]:
        with self.transaction() as transaction:
            return reflect_references(transaction.connection, table)

    @contextmanager
    def transaction(self) -> Iterator[SqliteTransaction]:
        outer: SqliteTransaction | None = getattr(self._open, "transaction", None)
        if outer is not None:
            yield outer
            return
        try:
            with self._engine.connect() as connection:
                self._open.transaction = SqliteTransaction(connection, self)
                connection.exec_driver_sql("BEGIN")
                try:
                    yield self._open.transaction
                    connection.exec_driver_sql("COMMIT")
                except BaseException:
                    if connection.connection.dbapi_connection.in_transaction:  # type: ignore[union-attr]  # sqlite3
                        connection.exec_driver_sql("ROLLBACK")
                    raise
        except (sa.exc.DBAPIError, sqlite3.Error) as error:
            raise self.translated(getattr(error, "orig", None) or error) from None
        finally:
            self._open.transaction = None

    def close(self) -> None:
        self._engine.dispose()

    def is_writable(self) -> bool:
        """Whether this process may write to the file, and beside it."""
        return all(os.access(path, os.W_OK) for path in (self._path, self._path.resolve().parent))

    def begin(self, connection: sa.Connection) -> None:
        """Begin a transaction as the one writer. Whoever writes now is waited for, and told of.

        Raises TargetLockedError.
        """
        connection.exec_driver_sql("PRAGMA busy_timeout = 1000")
        for _ in range(BUSY_S):
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                break
            except sa.exc.OperationalError as error:
                if not _is_busy(error.orig):
                    raise
            if self._on_wait is not None:
                self._on_wait(holder_of(self._path))
        else:
            raise TargetLockedError(holder_of(self._path), waited_s=BUSY_S)
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {BUSY_S * 1000}")

    def translated(self, error: BaseException) -> TargetError:
        """By SQLite's own name of the error: its text may quote names only, but no value either way."""
        refusal = refusal_of(error)
        if refusal is not None:
            return refusal
        if _is_busy(error):
            return TargetLockedError(holder_of(self._path), waited_s=BUSY_S)
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        reason = next((f"{why} ({name})" for known, why in _REASONS.items() if name.startswith(known)), name)
        may_pass = name.startswith(("SQLITE_IOERR", "SQLITE_FULL"))
        return TargetError(
            f"the target {self._path.name!r} refused a statement: {reason}", resumable=may_pass
        )


class SqliteTransaction(RelationalTransaction):
    """One open transaction."""

    def __init__(self, connection: sa.Connection, target: SqliteTarget) -> None:
        super().__init__(connection)
        self._target, self._is_locked = target, False

    def refused(self, error: BaseException) -> TargetError:
        return self._target.translated(error)

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        try:
            with super().savepoint():
                yield
        except sqlite3.Error as error:  # of executemany, which SQLAlchemy does not see
            raise self.refused(error) from None

    def check_deferred(self) -> None:
        """Nothing: SQLite judges deferred keys at the commit only, and then refuses the whole chunk."""

    def next_key(self, table: Table) -> int | None:
        """None: SQLite goes on above the highest key by itself."""
        del table
        return None

    def lock(self) -> None:
        if not self._is_locked:
            self._connection.exec_driver_sql("ROLLBACK")
            self._target.begin(self._connection)
            self._is_locked = True

    def lacking(self, tables: Sequence[Table]) -> list[tuple[str, str]]:  # noqa: ARG002 - a file has no tables
        return [] if self._target.is_writable() else [("INSERT", "file, or on its folder")]

    def among(self, _: str, column: sa.ColumnElement[Any], values: Sequence[Any]) -> Any:
        listed = sa.func.json_each(json.dumps(list(values))).table_valued("value")
        return column.in_(sa.select(listed.c.value))

    def together(
        self, columns: Sequence[Column], compared: Sequence[sa.ColumnElement[Any]], rows: pl.DataFrame
    ) -> Any:
        listed = sa.func.json_each(json.dumps([*stored_rows(rows)])).table_valued("value")
        parts = (sa.func.json_extract(listed.c.value, f"$[{place}]") for place in range(len(columns)))
        return sa.tuple_(*compared).in_(sa.select(*parts))

    def read_frame(self, columns: Sequence[Column], statement: sa.Select[Any]) -> pl.DataFrame:
        return frame_of(columns, self._connection.execute(statement).all())

    def scan_frames(
        self, columns: Sequence[Column], statement: sa.Select[Any], rows: int
    ) -> Iterator[pl.DataFrame]:
        for part in self._connection.execute(statement).partitions(rows):
            yield frame_of(columns, part)

    def insert(self, table: Table, frame: pl.DataFrame) -> None:
        statement = sa.insert(sa.table(table.name, *map(sa.column, frame.columns)))
        self._many(statement, stored_rows(frame))

    def update(self, table: Table, frame: pl.DataFrame) -> None:
        names = [name for name in frame.columns if name not in table.key]
        if names:
            self._many(self._update(table, names), stored_rows(frame.select(*names, *table.key)))

    def keeps_inserts(self, table: Table, columns: Sequence[str]) -> bool:
        """Nothing is taken for granted of a database that makes another type of a value."""
        del table, columns
        return False

    def after_hashes(self, table: Table, keys: Sequence[Any]) -> dict[str, str]:
        images = self.images(table, keys)
        return {key: hashlib.sha256(image.encode()).hexdigest() for key, image in images.items()}

    def images(self, table: Table, keys: Sequence[Any]) -> dict[str, str]:
        columns: list[sa.ColumnClause[Any]] = [sa.column(name) for name in table.columns]
        statement = sa.select(*columns).select_from(sa.table(table.name)).where(self.has_key(table, keys))
        rows = self._connection.execute(statement).all()
        return dict(
            zip(_keys(table, rows), (json.dumps([*row], default=_tagged) for row in rows), strict=True)
        )

    def restore(self, table: Table, images: Sequence[str]) -> None:
        names = _stored(table)
        others = [name for name in names if name not in table.key]
        rows = (self._row(table, image) for image in images)
        if others:
            set_in = ([row[name] for name in (*others, *table.key)] for row in rows)
            self._many(self._update(table, others), set_in)

    def bring_back(self, table: Table, images: Sequence[str]) -> None:
        names = _stored(table)
        rows = (self._row(table, image) for image in images)
        statement = sa.insert(sa.table(table.name, *map(sa.column, names)))
        self._many(statement, ([row[name] for name in names] for row in rows))

    def advance_sequence(self, table: Table) -> None:
        """Nothing: SQLite goes on above the highest key by itself."""

    def _row(self, table: Table, image: str) -> dict[str, Any]:
        return dict(zip(table.columns, json.loads(image, object_hook=_untagged), strict=True))

    def _update(self, table: Table, names: list[str]) -> sa.Update:
        rows = sa.table(table.name, *map(sa.column, [*names, *table.key]))
        values: dict[str, Any] = {name: sa.bindparam(f"v{place}") for place, name in enumerate(names)}
        same = (rows.c[name] == sa.bindparam(f"k{place}") for place, name in enumerate(table.key))
        return sa.update(rows).values(values).where(sa.and_(*same))

    def _many(self, statement: Any, rows: Any) -> None:
        """One prepared statement for all rows; its parameters stand in the order of the rows' values."""
        text = str(statement.compile(dialect=self._connection.dialect))
        driver: Any = self._connection.connection.dbapi_connection
        driver.executemany(text, rows)


_REFUSALS = {
    "SQLITE_CONSTRAINT_NOTNULL": ("required", "is missing"),
    "SQLITE_CONSTRAINT_FOREIGNKEY": ("reference", "refers to a row that is not there"),
    "SQLITE_CONSTRAINT_UNIQUE": ("unique", "occurs in the target already"),
    "SQLITE_CONSTRAINT_PRIMARYKEY": ("unique", "occurs in the target already"),
    "SQLITE_CONSTRAINT_TRIGGER": ("trigger", "a trigger refused it"),
    "SQLITE_CONSTRAINT_DATATYPE": ("type", "is not of the column's type"),
    "SQLITE_CONSTRAINT": ("check", "breaks a constraint"),
    "SQLITE_MISMATCH": ("type", "is not of the column's type"),
    "SQLITE_TOOBIG": ("max_length", "is too long"),
}
"""SQLite's name of an error, or its beginning -> the rule that a refused row broke, and the message."""


_REASONS = {
    "SQLITE_READONLY": "it is read-only",
    "SQLITE_CANTOPEN": "it, or a file beside it, cannot be opened",
    "SQLITE_FULL": "its disk is full",
    "SQLITE_IOERR": "its disk fails, or is full",
    "SQLITE_NOTADB": "it is no SQLite database",
    "SQLITE_CORRUPT": "it is damaged",
}
"""SQLite's name of an error, or its beginning -> what it means to whoever migrates."""


def _is_busy(error: BaseException | None) -> bool:
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def refusal_of(error: BaseException) -> RecordRefusedError | None:
    """The refusal that an error is, or None."""
    name = getattr(error, "sqlite_errorname", "")
    for known, (rule, reason) in _REFUSALS.items():
        if name.startswith(known):
            return RecordRefusedError(rule, "", reason)
    return None


def _stored(table: Table) -> list[str]:
    return [name for name, column in table.columns.items() if not column.is_computed]


def _keys(table: Table, rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    """The keys of whole rows, as text."""
    places = [[*table.columns].index(name) for name in table.key]
    if len(places) == 1:
        return (str(row[places[0]]) for row in rows)
    parts = frame_of(table.key_columns, [[row[place] for place in places] for row in rows])
    return iter(parts.select(key_text(table.key_columns)).to_series())


def _tagged(value: bytes) -> dict[str, str]:
    return {"$bytes": value.hex()}


def _untagged(value: dict[str, str]) -> bytes:
    return bytes.fromhex(value["$bytes"])
