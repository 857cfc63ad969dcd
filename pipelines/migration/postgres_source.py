"""PostgreSQL as a source: one REPEATABLE READ, READ ONLY snapshot, read by COPY a page at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import polars as pl
import psycopg2
import sqlalchemy as sa

from pipelines.migration.errors import SourceError
from pipelines.migration.postgres import SESSION
from pipelines.migration.postgres_values import select_out, typed_frame
from pipelines.migration.postgres_waits import LOCK_WAIT_S, OURS, Wait
from pipelines.migration.schema import Column, Table, reflect_tables
from pipelines.migration.source import KeysetSnapshot


class PostgresSource:
    """A PostgreSQL database, its default schema; nothing is ever written to it."""

    def __init__(self, url: sa.URL, *, on_wait: Callable[[str], None] | None = None) -> None:
        self._url, self._on_wait = url, on_wait
        options = f"{SESSION} -c default_transaction_read_only=on -c lock_timeout={LOCK_WAIT_S}s"
        arguments = {"options": options, "connect_timeout": 10, "application_name": OURS}
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
        wait = Wait(self._url, self._on_wait)
        try:
            with self._engine.connect() as connection, wait.watched(connection):
                yield connection
        except (sa.exc.DBAPIError, psycopg2.Error) as error:
            if wait.stopped is not None:
                raise wait.stopped from None
            state = getattr(getattr(error, "orig", error), "pgcode", None)
            why = f"SQLSTATE {state}" if state else "no connection"
            if state == "55P03":
                why = wait.held_by or why
            reason = f"the source database {self._url.database!r} cannot be read ({why})"
            raise SourceError(reason, resumable=True) from None


class PostgresSnapshot(KeysetSnapshot):
    """Reads inside one transaction."""

    def page(
        self, statement: sa.Select[Any], columns: list[Column], key: Sequence[str]
    ) -> tuple[pl.DataFrame, Sequence[Any] | None]:
        page = select_out(self._connection, statement, [column.name for column in columns])
        return typed_frame(page, columns), page.select(key).row(-1) if page.height else None
