"""Targets: what the engine writes to, in transactions of its own making."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import polars as pl
import sqlalchemy as sa

from pipelines.migration.errors import TargetError
from pipelines.migration.schema import Table


@dataclass(frozen=True)
class Reference:
    """A foreign key of one column: `table.column` refers to the key of another table."""

    table: Table
    column: str


class TargetTransaction(Protocol):
    """Statements that commit together. Keys are in the key column's own type."""

    @property
    def connection(self) -> sa.Connection:
        """The connection, for the work tables."""

    def lock(self) -> None:
        """Wait until no other run of ours writes to this database; held to the end."""

    def savepoint(self) -> AbstractContextManager[None]:
        """Undo only what is done inside when it raises; the transaction goes on.

        Raises RecordRefusedError when the target refuses a row for what is in it.
        """

    def next_key(self, table: Table) -> int | None:
        """The key that the target would give next; None when no sequence gives it."""

    def is_empty(self, table: Table) -> bool:
        """Whether the table holds no row."""

    def copy_in(self, table: str, frame: pl.DataFrame) -> None:
        """Insert the rows of a frame whose columns are named like the table's."""

    def after_hashes(self, table: Table, keys: Sequence[Any]) -> dict[str, str]:
        """The hash of each whole row as it stands now, by key as text; all columns count."""

    def delete(self, table: Table, keys: Sequence[Any]) -> int:
        """Delete the rows of these keys; how many there were."""

    def referring(self, reference: Reference, keys: Sequence[Any]) -> list[tuple[str, str | None]]:
        """The rows that refer to these keys: (the key referred to, their own key or None), as text."""

    def read(self, table: Table, columns: list[str], *, after: Any, limit: int) -> pl.DataFrame:
        """The next rows in key order, in the columns' staged types; `after` None begins."""

    def read_where(
        self, table: Table, columns: list[str], *, column: str, values: Sequence[Any]
    ) -> pl.DataFrame:
        """The rows whose column has one of these values, in key order, in the columns' staged types."""

    def count(self, table: Table) -> int:
        """The number of rows."""

    def advance_sequence(self, table: Table) -> None:
        """Make the key's sequence go on above the highest key; no sequence is nothing to do."""


class Target(Protocol):
    """A database to migrate into."""

    def describe(self) -> dict[str, str]:
        """Kind and database name, as events state them: no host, no user, no password."""

    def tables(self, names: set[str]) -> dict[str, Table]:
        """Those of the named tables that exist."""

    def references_to(self, table: str) -> list[Reference]:
        """The foreign keys of any table that refer to this one, the work tables aside."""

    def transaction(self) -> AbstractContextManager[TargetTransaction]:
        """A transaction: committed on a clean exit, undone on an exception.

        Raises TargetError, without the values of any row, when the database refuses or is away.
        """

    def close(self) -> None:
        """Release every connection."""


def open_target(url: str) -> Target:
    """The target of a URL; nothing is connected yet.

    Raises TargetError for a malformed URL or an unknown kind of database.
    """
    from pipelines.migration.postgres import PostgresTarget

    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise TargetError("the target is not a database URL such as postgresql://…", stage="start") from None
    if parsed.get_backend_name() != "postgresql":
        kind = parsed.get_backend_name()
        raise TargetError(f"targets of kind {kind!r} are not supported in this version", stage="start")
    return PostgresTarget(parsed.set(drivername="postgresql+psycopg2"))
