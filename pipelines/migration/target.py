"""Targets: what the engine writes to, in transactions of its own making.

This is the seam that a new kind of database joins: a `Target` that opens transactions, and a
`TargetTransaction`, most of which `relational.RelationalTransaction` does in plain SQLAlchemy Core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import sqlalchemy as sa

from pipelines.migration.errors import TargetError
from pipelines.migration.schema import Table, Unique


@dataclass(frozen=True)
class Reference:
    """A foreign key: these columns of the table refer to those columns of another table."""

    table: Table
    columns: tuple[str, ...]
    referred: tuple[str, ...]

    def to_key(self, of: Table) -> tuple[str, ...] | None:
        """The columns in the order of the other table's key; None when they refer to other columns."""
        held = dict(zip(self.referred, self.columns, strict=True))
        return tuple(held[name] for name in of.key) if {*held} == {*of.key} else None


class TargetTransaction(Protocol):
    """Statements that commit together. Keys are as `keys.key_value` gives them."""

    @property
    def connection(self) -> sa.Connection:
        """The connection, for the work tables."""

    def lock(self) -> None:
        """Wait until no other run of ours writes to this database; held to the end. Called first."""

    def savepoint(self) -> AbstractContextManager[None]:
        """Undo only what is done inside when it raises; the transaction goes on.

        Raises RecordRefusedError when the target refuses a row for what is in it.
        """

    def check_deferred(self) -> None:
        """Let constraints that wait for the end of the transaction speak now, inside a savepoint."""

    def next_key(self, table: Table) -> int | None:
        """The key that the target would give next; None when no sequence gives it."""

    def lacking(self, tables: Sequence[Table]) -> list[tuple[str, str]]:
        """What the user may not do that a run into these tables, or its rollback, does: (SELECT, INSERT,
        UPDATE, DELETE or CREATE, what that right is missing on)."""

    def is_empty(self, table: Table) -> bool:
        """Whether the table holds no row."""

    def count(self, table: Table) -> int:
        """The number of rows."""

    def highest_key(self, table: Table) -> int:
        """The highest key of a table whose key is a number; 0 when it is empty."""

    def find(self, table: Table, unique: Unique, values: pl.DataFrame) -> pl.DataFrame:
        """The rows that equal one of the rows of values in columns that are unique: a frame of these
        columns, under their own names and as they stand there, and `_found`, the key."""

    def insert(self, table: Table, frame: pl.DataFrame) -> None:
        """Insert the rows of a frame whose columns are named like the table's."""

    def update(self, table: Table, frame: pl.DataFrame) -> None:
        """Set the columns of a frame in the rows that have its keys."""

    def keeps_inserts(self, table: Table, columns: Sequence[str]) -> bool:
        """Whether the rows that this transaction inserted stand as they were given: in these columns, which
        are all that can be written, of types that change no value, and without a trigger that could.

        Asked after the insert: the lock it holds keeps the answer true until the transaction ends."""

    def after_hashes(self, table: Table, keys: Sequence[Any]) -> dict[str, str]:
        """The hash of each whole row as it stands now, by key as text; all columns count."""

    def images(self, table: Table, keys: Sequence[Any]) -> dict[str, str]:
        """Each whole row in a form that `restore` and `bring_back` read, by key as text."""

    def restore(self, table: Table, images: Sequence[str]) -> None:
        """Make rows that are there what they were."""

    def bring_back(self, table: Table, images: Sequence[str]) -> None:
        """Insert rows that are gone as they were."""

    def delete(self, table: Table, keys: Sequence[Any]) -> int:
        """Delete the rows of these keys; how many there were."""

    def referring(
        self, table: Table, columns: tuple[str, ...], keys: Sequence[Any]
    ) -> list[tuple[str, str | None]]:
        """The rows whose columns have one of these keys: (that key, their own key or None), as text."""

    def scan(self, table: Table, columns: list[str], *, rows: int) -> Iterator[pl.DataFrame]:
        """All rows as they are at one moment, in no order, at most `rows` in a frame, in the columns' staged
        types, with `_ill_typed` as `Snapshot.chunks` has it. Until it ends, the transaction does nothing
        else."""

    def rows(
        self, table: Table, columns: list[str], *, of: tuple[str, ...], among: Sequence[Any]
    ) -> pl.DataFrame:
        """The rows whose columns `of` have one of these keys, in key order and staged types, with
        `_ill_typed`."""

    def advance_sequence(self, table: Table) -> None:
        """Make the numbered key's sequence go on above the highest key; no sequence is nothing to do."""


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

        One opened inside another of the same thread may be the same one. Raises TargetError, without
        the values of any row, when the database refuses or is away; TargetLockedError when others keep it
        from going on.
        """

    def close(self) -> None:
        """Release every connection."""


def open_target(url: str, *, migration_id: str = "", on_wait: Callable[[str], None] | None = None) -> Target:
    """The target of a URL; nothing is connected yet.

    Its connections carry the migration's name where the database shows names. `on_wait` is called once a
    second, from any thread, while somebody else's lock is waited for: with what it is and who holds it. When
    it raises RunStoppedError, the wait and its transaction end with that.
    Raises TargetError for a malformed URL, an unknown kind of database, or a file that is not there.
    """
    from pipelines.migration.postgres import PostgresTarget
    from pipelines.migration.sqlite_target import SqliteTarget

    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise TargetError("the target is not a database URL such as postgresql://…", stage="start") from None
    match parsed.get_backend_name():
        case "postgresql":
            driven = parsed.set(drivername="postgresql+psycopg2")
            return PostgresTarget(driven, migration_id=migration_id, on_wait=on_wait)
        case "sqlite":
            return SqliteTarget(Path(parsed.database or ""), on_wait=on_wait)
        case kind:
            raise TargetError(f"targets of kind {kind!r} are not supported in this version", stage="start")
