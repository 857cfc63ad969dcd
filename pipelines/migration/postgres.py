"""PostgreSQL as a target: COPY in, hashes and images on the server, errors without row values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import polars as pl
import psycopg2
import psycopg2.sql as pgsql
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from pipelines.migration.errors import MigrationError, RecordRefusedError, TargetError, TargetLockedError
from pipelines.migration.keys import key_text
from pipelines.migration.postgres_kept import keeps_inserts
from pipelines.migration.postgres_rights import lacking
from pipelines.migration.postgres_values import Outflow, array_texts, copy_text, select_out, typed_frame
from pipelines.migration.postgres_waits import LOCK_WAIT_S, OURS, Wait
from pipelines.migration.relational import RelationalTransaction, reflect_references
from pipelines.migration.schema import Column, Table, reflect_tables
from pipelines.migration.target import Reference

SESSION = (
    "-c timezone=UTC -c datestyle=ISO -c intervalstyle=iso_8601 -c bytea_output=hex -c extra_float_digits=1"
)
"""A row's text, of which the after-hash is made, depends on these."""

_LOCK_KEY = 0x65736D_6D6967  # "esmmig"
_KEY_TYPES: dict[str, Any] = {"integer": sa.BigInteger(), "uuid": sa.Uuid(as_uuid=False)}
_PART_TYPES = _KEY_TYPES | {
    "boolean": sa.Boolean(),
    "date": sa.Date(),
    "datetime": sa.DateTime(),
    "datetime_tz": sa.DateTime(timezone=True),
}
_DENSE = 4
"""Up to how many keys of a range may belong to nobody who was asked for."""
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
_REASONS = {
    "25006": "it is read-only",
    "42501": "its user may not do this",
    "42P01": "a table that was there when the run began is gone",
    "42703": "a column that was there when the run began is gone",
    "53100": "its disk is full",
    "53300": "it takes no more connections",
    "57P01": "it is shutting down",
}
"""SQLSTATE -> what it means to whoever migrates."""


class PostgresTarget:
    """A PostgreSQL database, its default schema."""

    def __init__(
        self, url: sa.URL, *, migration_id: str = "", on_wait: Callable[[str], None] | None = None
    ) -> None:
        self._url, self._on_wait = url, on_wait
        options = f"{SESSION} -c lock_timeout={LOCK_WAIT_S}s"
        name = f"{OURS} {migration_id}".strip()
        arguments = {"options": options, "connect_timeout": 10, "application_name": name}
        self._engine = sa.create_engine(url, connect_args=arguments, pool_size=1)

    def describe(self) -> dict[str, str]:
        return {"kind": "postgresql", "database": self._url.database or ""}

    def tables(self, names: set[str]) -> dict[str, Table]:
        with self.transaction() as transaction:
            return reflect_tables(transaction.connection, names)

    def references_to(self, table: str) -> list[Reference]:
        with self.transaction() as transaction:
            return reflect_references(transaction.connection, table)

    @contextmanager
    def transaction(self) -> Iterator[PostgresTransaction]:
        wait = Wait(self._url, self._on_wait)
        try:
            with self._engine.begin() as connection, wait.watched(connection):
                transaction = PostgresTransaction(connection)
                try:
                    yield transaction
                finally:
                    transaction.end_scan()
        except sa.exc.DBAPIError as error:
            raise _named(_translated(error.orig, self._url.database), wait) from None
        except psycopg2.Error as error:
            raise _named(_translated(error, self._url.database), wait) from None
        except TargetError as error:  # of a savepoint
            raise _named(error, wait) from None

    def close(self) -> None:
        self._engine.dispose()


class PostgresTransaction(RelationalTransaction):
    """One open transaction."""

    _scanning: Outflow | None = None

    def lock(self) -> None:
        self._connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_KEY)))

    def refused(self, error: BaseException) -> TargetError:
        return _translated(error, None)

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        try:
            with super().savepoint():
                yield
        except psycopg2.Error as error:  # of COPY, which SQLAlchemy does not see
            raise _translated(error, None) from None

    def check_deferred(self) -> None:
        self._connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")

    def next_key(self, table: Table) -> int | None:
        sequence = self._sequence(table)
        if sequence is None:
            return None
        drawn = self._connection.scalar(
            sa.select(sa.func.pg_sequence_last_value(sa.cast(sequence, pg.REGCLASS)))
        )
        return 1 if drawn is None else int(drawn) + 1

    def lacking(self, tables: Sequence[Table]) -> list[tuple[str, str]]:
        sequences = filter(None, map(self._sequence, tables))
        return [*lacking(self._connection, tables, [*sequences])]

    def among(self, kind: str, column: sa.ColumnElement[Any], values: Sequence[Any]) -> Any:
        of = pg.ARRAY(_KEY_TYPES.get(kind, sa.Text()))
        wanted = sa.any_(sa.cast(sa.literal(_array(values), sa.Text()), of))
        is_text = kind not in ("integer", "uuid", "text")
        return (sa.cast(column, sa.Text) if is_text else column) == wanted

    def together(
        self, columns: Sequence[Column], compared: Sequence[sa.ColumnElement[Any]], rows: pl.DataFrame
    ) -> Any:
        arrays = [
            sa.cast(
                sa.literal(_array(array_texts(rows[column.name])), sa.Text()),
                pg.ARRAY(_PART_TYPES.get(column.kind, sa.Text())),
            )
            for column in columns
        ]
        names = [f"k{place}" for place in range(len(columns))]
        wanted = sa.func.unnest(*arrays).table_valued(*names).render_derived()
        parts = [
            sa.cast(part, sa.Text) if column.values is not None else part  # no enum equals a text
            for column, part in zip(columns, compared, strict=True)
        ]
        return sa.tuple_(*parts).in_(sa.select(*(wanted.c[name] for name in names)))

    def read_frame(self, columns: Sequence[Column], statement: sa.Select[Any]) -> pl.DataFrame:
        page = select_out(self._connection, statement, [column.name for column in columns])
        return typed_frame(page, columns)

    def scan_frames(
        self, columns: Sequence[Column], statement: sa.Select[Any], rows: int
    ) -> Iterator[pl.DataFrame]:
        """A sort of all that is left for each page, which a server without statistics prefers to an index,
        would make reading in order quadratic; one COPY has no order, and sees one moment."""
        self._scanning = Outflow(self._connection, statement, [column.name for column in columns], rows)
        for page in self._scanning.pages():
            yield typed_frame(page, columns)

    def end_scan(self) -> None:
        """Let go of a scan that nobody reads to its end: it holds the connection."""
        if self._scanning is not None:
            self._scanning.end()

    def insert(self, table: Table, frame: pl.DataFrame) -> None:
        if not frame.is_empty():
            self._copy_in(table.name, frame)

    def update(self, table: Table, frame: pl.DataFrame) -> None:
        if frame.is_empty():
            return
        make = "CREATE TEMPORARY TABLE mig_changed ON COMMIT DROP AS SELECT {} FROM {} LIMIT 0"
        columns = pgsql.SQL(", ").join(map(pgsql.Identifier, frame.columns))
        with self._driver().cursor() as cursor:
            cursor.execute(pgsql.SQL(make).format(columns, pgsql.Identifier(table.name)))
        self._copy_in("mig_changed", frame)
        rows, changed = (
            sa.table(name, *map(sa.column, frame.columns)) for name in (table.name, "mig_changed")
        )
        self._overwrite(table, rows, changed, frame.columns)
        self._connection.execute(sa.schema.DropTable(sa.Table("mig_changed", sa.MetaData())))

    def keeps_inserts(self, table: Table, columns: Sequence[str]) -> bool:
        return keeps_inserts(self._connection, self._quoted(table), columns)

    def after_hashes(self, table: Table, keys: Sequence[Any]) -> dict[str, str]:
        halves = (sa.func.to_hex(sa.func.hashtextextended(sa.column("mig_value"), seed)) for seed in (0, 1))
        digest = sa.func.concat(*(sa.func.lpad(half, 16, "0") for half in halves))
        return self._by_key(table, sa.cast(sa.literal_column("mig_row"), sa.Text), keys, digest)

    def images(self, table: Table, keys: Sequence[Any]) -> dict[str, str]:
        row = sa.cast(sa.func.row_to_json(sa.literal_column("mig_row")), sa.Text)
        return self._by_key(table, row, keys)

    def restore(self, table: Table, images: Sequence[str]) -> None:
        if images:
            rows = sa.table(table.name, *map(sa.column, table.columns))
            self._overwrite(table, rows, self._image_rows(table, images), _stored(table))

    def _overwrite(self, table: Table, rows: Any, other: Any, names: Sequence[str]) -> None:
        """Set the columns of these names in the rows that have the keys of others."""
        values = {name: other.c[name] for name in names if name not in table.key}
        same = sa.and_(*(rows.c[name] == other.c[name] for name in table.key))
        if values:
            self._connection.execute(sa.update(rows).values(values).where(same))

    def bring_back(self, table: Table, images: Sequence[str]) -> None:
        if images:
            names, image = _stored(table), self._image_rows(table, images)
            rows = sa.table(table.name, *map(sa.column, names))
            self._connection.execute(
                sa.insert(rows).from_select(names, sa.select(*(image.c[n] for n in names)))
            )

    def advance_sequence(self, table: Table) -> None:
        sequence = self._sequence(table)
        if sequence is not None and (top := self.highest_key(table)) > 0:
            self._connection.execute(sa.select(sa.func.setval(sequence, top)))

    def _sequence(self, table: Table) -> str | None:
        """The sequence that gives the keys of a numbered table."""
        if not table.is_numbered:
            return None
        owned = sa.func.pg_get_serial_sequence(self._quoted(table), *table.key)
        sequence: str | None = self._connection.scalar(sa.select(owned))
        return sequence

    def _by_key(
        self,
        table: Table,
        value: sa.ColumnElement[Any],
        keys: Sequence[Any],
        made: sa.ColumnElement[Any] | None = None,
    ) -> dict[str, str]:
        """A text of each whole row, by key; or what is `made` of that `value`, which is found once."""
        rows = sa.table(table.name, *map(sa.column, table.key)).alias("mig_row")
        parts = [rows.c[name] for name in table.key]
        wanted = self.has_key(table, keys)
        if table.is_numbered and keys and max(keys) - min(keys) < _DENSE * len(keys):
            wanted = parts[0].between(min(keys), max(keys))  # half the time of a look-up for each key
        texts = sa.select(*parts, value.label("mig_value")).select_from(rows).where(wanted)
        if made is not None:
            inner = texts.offset(sa.literal_column("0")).subquery()  # else the server makes the text twice
            texts = sa.select(*(inner.c[name] for name in table.key), made).select_from(inner)
        page = select_out(self._connection, texts, [*table.key, "mig_value"])
        typed = typed_frame(page, table.key_columns)
        found = dict(
            zip(typed.select(key_text(table.key_columns)).to_series(), page["mig_value"], strict=True)
        )
        return found if len(found) <= len(keys) else {k: found[k] for k in map(str, keys) if k in found}

    def _image_rows(self, table: Table, images: Sequence[str]) -> Any:
        of: sa.ColumnElement[Any] = sa.literal_column(f"NULL::{self._quoted(table)}")
        whole = sa.cast(sa.literal("[" + ",".join(images) + "]"), sa.JSON)
        made = sa.func.json_populate_recordset(of, whole)
        return made.table_valued(*table.columns).alias("image")

    def _quoted(self, table: Table) -> str:
        return self._connection.dialect.identifier_preparer.quote(table.name)

    def _driver(self) -> Any:
        """psycopg2's own connection, whose COPY SQLAlchemy does not know."""
        return self._connection.connection

    def _copy_in(self, table: str, frame: pl.DataFrame) -> None:
        statement = pgsql.SQL(r"COPY {} ({}) FROM STDIN WITH (FORMAT csv, NULL '\N')").format(
            pgsql.Identifier(table), pgsql.SQL(", ").join(map(pgsql.Identifier, frame.columns))
        )
        with self._driver().cursor() as cursor:
            cursor.copy_expert(statement, copy_text(frame), 1 << 20)


def _array(values: Sequence[Any]) -> str:
    """An array as one text: the server parses it ten times faster than a list of constants."""
    if values and isinstance(values[0], str):
        quoted = (value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
        return "{" + ",".join(f'"{value}"' for value in quoted) + "}"
    return "{" + ",".join(map(str, values)) + "}"


def _stored(table: Table) -> list[str]:
    """The columns that can be written."""
    return [name for name, column in table.columns.items() if not column.is_computed]


def _named(error: TargetError, wait: Wait) -> MigrationError:
    """The error, which says who held a lock if that is known; of a wait that was stopped, that it was."""
    if wait.stopped is not None:
        return wait.stopped
    if isinstance(error, TargetLockedError) and wait.held_by:
        return TargetLockedError(wait.held_by, waited_s=LOCK_WAIT_S)
    return error


def _translated(error: BaseException | None, database: str | None) -> TargetError:
    """By SQLSTATE and names only: the server's text may quote the values of a row."""
    state = getattr(error, "pgcode", None)
    if state is None:
        reason = "no server answers, it does not exist, or it does not let this user in"
        return TargetError(f"the target database {database!r} cannot be reached: {reason}", resumable=True)
    diagnostics = getattr(error, "diag", None)
    names = {name: getattr(diagnostics, f"{name}_name", None) for name in ("table", "column", "constraint")}
    refusal = _REFUSALS.get(state) or _REFUSALS.get(state[:2])
    if refusal is not None:
        rule, reason = refusal
        what = f" ({names['constraint']})" if names["constraint"] else ""
        return RecordRefusedError(rule, names["column"] or "", reason + what)
    if state == "55P03":
        return TargetLockedError("a lock of somebody else", waited_s=LOCK_WAIT_S)
    where = ", ".join(f"{name} {value!r}" for name, value in names.items() if value)
    gone = state.startswith(("08", "57", "40", "53"))
    what = f"SQLSTATE {state}{', ' + where if where else ''}"
    told = f"{_REASONS[state]} ({what})" if state in _REASONS else what
    return TargetError(f"the target refused a statement: {told}", resumable=gone)
