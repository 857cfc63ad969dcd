"""PostgreSQL as a source: one REPEATABLE READ, READ ONLY snapshot, read by COPY a page at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import polars as pl
import psycopg2
import psycopg2.sql as pgsql
import sqlalchemy as sa

from pipelines.migration.errors import SourceError
from pipelines.migration.postgres import SESSION
from pipelines.migration.postgres_values import copied_out, typed_frame
from pipelines.migration.schema import Table, reflect_tables


class PostgresSource:
    """A PostgreSQL database, its default schema; nothing is ever written to it."""

    def __init__(self, url: sa.URL) -> None:
        self._url = url
        options = f"{SESSION} -c default_transaction_read_only=on"
        arguments = {"options": options, "connect_timeout": 10, "application_name": "esm-migration"}
        self._engine = sa.create_engine(
            url, connect_args=arguments, poolclass=sa.NullPool, isolation_level="REPEATABLE READ"
        )

    def describe(self) -> dict[str, str]:
        return {"kind": "postgresql", "database": self._url.database or ""}

    def tables(self, names: set[str]) -> dict[str, Table]:
        with self._connection() as connection:
            return reflect_tables(connection, names)

    @contextmanager
    def snapshot(self) -> Iterator[PostgresSnapshot]:
        """One transaction, which sees one moment."""
        with self._connection() as connection:
            yield PostgresSnapshot(connection)

    @contextmanager
    def _connection(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except (sa.exc.DBAPIError, psycopg2.Error) as error:
            state = getattr(getattr(error, "orig", error), "pgcode", None)
            why = f"SQLSTATE {state}" if state else "no connection"
            reason = f"the source database {self._url.database!r} cannot be read ({why})"
            raise SourceError(reason, resumable=True) from None


class PostgresSnapshot:
    """Reads inside one transaction."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def count(self, table: str) -> int:
        return int(self._connection.scalar(sa.select(sa.func.count()).select_from(sa.table(table))) or 0)

    def chunks(
        self, table: Table, *, key: str, columns: tuple[str, ...], rows: int
    ) -> Iterator[pl.DataFrame]:
        last: str | None = None
        while True:
            page = self._page(table, key, columns, rows, last)
            if not page.is_empty():
                yield typed_frame(page, [table.columns[name] for name in columns])
                last = page[key][-1]
            if page.height < rows or last is None:
                return

    def _page(
        self, table: Table, key: str, columns: tuple[str, ...], rows: int, last: str | None
    ) -> pl.DataFrame:
        """The next rows as text. SQLAlchemy knows no COPY, so this is composed by the driver."""
        name = pgsql.Identifier(key)
        after = pgsql.SQL("WHERE {} > {}").format(name, pgsql.Literal(last)) if last is not None else None
        statement = pgsql.SQL("SELECT {} FROM {} {} ORDER BY {} LIMIT {}").format(
            pgsql.SQL(", ").join(map(pgsql.Identifier, columns)),
            pgsql.Identifier(table.name),
            after or pgsql.SQL(""),
            name,
            pgsql.Literal(rows),
        )
        raw: Any = self._connection.connection
        with raw.cursor() as cursor:
            return copied_out(cursor, statement, columns)
