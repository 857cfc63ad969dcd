"""PostgreSQL as a target: COPY in, hashes and deletes on the server, errors without row values."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import polars as pl
import psycopg2
import psycopg2.sql as pgsql
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from pipelines.migration.errors import RecordRefusedError, TargetError
from pipelines.migration.schema import Table, reflect_tables
from pipelines.migration.target import Reference
from pipelines.migration.worktables import WORK_TABLES

_SESSION = (
    "-c timezone=UTC -c datestyle=ISO -c intervalstyle=iso_8601 -c bytea_output=hex -c extra_float_digits=1"
)
"""A row's text, of which the after-hash is made, depends on these."""

_LOCK_KEY = 0x65736D_6D6967  # "esmmig"
_KEY_TYPES: dict[str, Any] = {"integer": sa.BigInteger(), "uuid": sa.Uuid(as_uuid=False)}
_REFUSALS = {
    "23502": ("required", "is missing"),
    "23503": ("reference", "refers to a row that is not there"),
    "23505": ("unique", "occurs in the target already"),
    "23": ("check", "breaks a constraint"),
    "22001": ("max_length", "is too long"),
    "22003": ("range", "is out of range"),
    "22": ("type", "is not of the column's type"),
    "P0": ("trigger", "a trigger refused it"),
}
"""SQLSTATE or its class -> the rule that a refused row broke, and the message."""

_AS_TEXT = ("uuid", "json", "decimal", "other")


class PostgresTarget:
    """A PostgreSQL database, its default schema."""

    def __init__(self, url: sa.URL) -> None:
        self._url = url
        arguments = {"options": _SESSION, "connect_timeout": 10, "application_name": "esm-migration"}
        self._engine = sa.create_engine(url, connect_args=arguments, pool_size=1)

    def describe(self) -> dict[str, str]:
        return {"kind": "postgresql", "database": self._url.database or ""}

    def tables(self, names: set[str]) -> dict[str, Table]:
        with self.transaction() as transaction:
            return reflect_tables(transaction.connection, names)

    def references_to(self, table: str) -> list[Reference]:
        with self.transaction() as transaction:
            inspector = sa.inspect(transaction.connection)
            found = [
                (name, key["constrained_columns"][0])
                for (_, name), keys in inspector.get_multi_foreign_keys().items()
                for key in keys
                if key["referred_table"] == table and len(key["constrained_columns"]) == 1
            ]
            tables = reflect_tables(transaction.connection, {name for name, _ in found})
        return [Reference(tables[name], column) for name, column in found if name not in WORK_TABLES]

    @contextmanager
    def transaction(self) -> Iterator[PostgresTransaction]:
        try:
            with self._engine.begin() as connection:
                yield PostgresTransaction(connection)
        except sa.exc.DBAPIError as error:
            raise _translated(error.orig, self._url.database) from None
        except psycopg2.Error as error:
            raise _translated(error, self._url.database) from None

    def close(self) -> None:
        self._engine.dispose()


class PostgresTransaction:
    """One open transaction."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    @property
    def connection(self) -> sa.Connection:
        return self._connection

    def lock(self) -> None:
        self._connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_KEY)))

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        try:
            with self._connection.begin_nested():
                yield
        except sa.exc.DBAPIError as error:
            raise _translated(error.orig, None) from None
        except psycopg2.Error as error:
            raise _translated(error, None) from None

    def next_key(self, table: Table) -> int | None:
        sequence = self._sequence(table)
        if sequence is None:
            return None
        drawn = self._connection.scalar(
            sa.select(sa.func.pg_sequence_last_value(sa.cast(sequence, pg.REGCLASS)))
        )
        return 1 if drawn is None else int(drawn) + 1

    def is_empty(self, table: Table) -> bool:
        return (
            self._connection.execute(sa.select(1).select_from(sa.table(table.name)).limit(1)).first() is None
        )

    def count(self, table: Table) -> int:
        return int(self._connection.scalar(sa.select(sa.func.count()).select_from(sa.table(table.name))) or 0)

    def copy_in(self, table: str, frame: pl.DataFrame) -> None:
        if frame.is_empty():
            return
        statement = pgsql.SQL(r"COPY {} ({}) FROM STDIN WITH (FORMAT csv, NULL '\N')").format(
            pgsql.Identifier(table), pgsql.SQL(", ").join(map(pgsql.Identifier, frame.columns))
        )
        text = frame.select(_copy_form(series) for series in frame).write_csv(
            include_header=False, null_value=r"\N", quote_style="non_numeric"
        )
        raw: Any = self._connection.connection  # psycopg2's own, whose COPY SQLAlchemy does not know
        with raw.cursor() as cursor:
            cursor.copy_expert(statement, io.BytesIO(text.encode()))

    def after_hashes(self, table: Table, keys: Sequence[Any]) -> dict[str, str]:
        assert table.key is not None
        rows = _key_table(table).alias("mig_row")
        text = sa.cast(sa.literal_column("mig_row"), sa.Text)
        digest = sa.func.encode(sa.func.sha256(sa.func.convert_to(text, "UTF8")), "hex")
        key = rows.c[table.key]
        statement = sa.select(sa.cast(key, sa.Text), digest).where(_among(table, key, keys))
        return {row[0]: row[1] for row in self._connection.execute(statement)}

    def delete(self, table: Table, keys: Sequence[Any]) -> int:
        assert table.key is not None
        rows = _key_table(table)
        return self._connection.execute(
            sa.delete(rows).where(_among(table, rows.c[table.key], keys))
        ).rowcount

    def referring(self, reference: Reference, keys: Sequence[Any]) -> list[tuple[str, str | None]]:
        column: sa.ColumnClause[Any] = sa.column(reference.column)
        own = sa.column(reference.table.key) if reference.table.key else sa.null()
        statement = sa.select(sa.cast(column, sa.Text), sa.cast(own, sa.Text)).select_from(
            sa.table(reference.table.name)
        )
        kind = reference.table.columns[reference.column].kind
        rows = self._connection.execute(statement.where(column == _any(kind, keys)))
        return [(referred, own_key) for referred, own_key in rows]

    def read(self, table: Table, columns: list[str], *, after: Any, limit: int) -> pl.DataFrame:
        statement = _selected(table, columns).limit(limit)
        if after is not None:
            statement = statement.where(sa.column(table.key or "") > after)
        return self._frame(table, columns, statement)

    def read_where(
        self, table: Table, columns: list[str], *, column: str, values: Sequence[Any]
    ) -> pl.DataFrame:
        wanted: sa.ColumnClause[Any] = sa.column(column)
        among = wanted == _any(table.columns[column].kind, values)
        return self._frame(table, columns, _selected(table, columns).where(among))

    def _frame(self, table: Table, columns: list[str], statement: sa.Select[Any]) -> pl.DataFrame:
        rows = [tuple(row) for row in self._connection.execute(statement)]
        schema = {name: table.columns[name].dtype for name in columns}
        return pl.DataFrame(rows, schema=schema, orient="row")

    def advance_sequence(self, table: Table) -> None:
        assert table.key is not None
        sequence = self._sequence(table)
        highest = self._connection.scalar(
            sa.select(sa.func.max(sa.column(table.key))).select_from(sa.table(table.name))
        )
        if sequence is not None and highest is not None:
            self._connection.execute(sa.select(sa.func.setval(sequence, highest)))

    def _sequence(self, table: Table) -> str | None:
        assert table.key is not None
        quoted = self._connection.dialect.identifier_preparer.quote(table.name)
        name: str | None = self._connection.scalar(
            sa.select(sa.func.pg_get_serial_sequence(quoted, table.key))
        )
        return name


def _selected(table: Table, columns: list[str]) -> sa.Select[Any]:
    assert table.key is not None
    kinds = {name: table.columns[name].kind for name in columns}
    picked = [
        sa.cast(sa.column(name), sa.Text) if kind in _AS_TEXT else sa.column(name)
        for name, kind in kinds.items()
    ]
    return sa.select(*picked).select_from(sa.table(table.name)).order_by(sa.column(table.key))


def _key_table(table: Table) -> sa.TableClause:
    assert table.key is not None
    return sa.table(table.name, sa.column(table.key))


def _among(table: Table, column: sa.ColumnElement[Any], keys: Sequence[Any]) -> sa.ColumnElement[bool]:
    assert table.key is not None
    return column == _any(table.columns[table.key].kind, keys)


def _any(kind: str, keys: Sequence[Any]) -> sa.ColumnElement[Any]:
    of = pg.ARRAY(_KEY_TYPES.get(kind, sa.Text()))
    return sa.any_(sa.cast(sa.bindparam(None, list(keys), type_=of), of))


def _copy_form(series: pl.Series) -> pl.Series:
    """What CSV cannot write as PostgreSQL reads it."""
    if isinstance(series.dtype, pl.Datetime):
        zone = "+00" if series.dtype.time_zone else ""
        return series.dt.to_string(f"%Y-%m-%d %H:%M:%S%.6f{zone}")
    if series.dtype == pl.Binary():
        return (r"\x" + series.to_frame().select(pl.all().bin.encode("hex")).to_series()).alias(series.name)
    return series


def _translated(error: BaseException | None, database: str | None) -> TargetError:
    """By SQLSTATE and names only: the server's text may quote the values of a row."""
    state = getattr(error, "pgcode", None)
    if state is None:
        return TargetError(f"the target database {database!r} cannot be reached", resumable=True)
    diagnostics = getattr(error, "diag", None)
    names = {name: getattr(diagnostics, f"{name}_name", None) for name in ("table", "column", "constraint")}
    refusal = _REFUSALS.get(state) or _REFUSALS.get(state[:2])
    if refusal is not None:
        rule, reason = refusal
        what = f" ({names['constraint']})" if names["constraint"] else ""
        return RecordRefusedError(rule, names["column"] or "", reason + what)
    where = ", ".join(f"{name} {value!r}" for name, value in names.items() if value)
    gone = state.startswith(("08", "57", "40", "53"))
    return TargetError(
        f"the target refused a statement: SQLSTATE {state}{', ' + where if where else ''}", resumable=gone
    )
