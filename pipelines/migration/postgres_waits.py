"""Waits: whom a PostgreSQL transaction waits for, told while it waits.

A statement that meets a lock of somebody else is bounded by `lock_timeout`. When it fails, the server no
longer knows who was in the way: so a thread asks while the transaction is open, over a connection that it
makes only then. Whoever is told may end the wait: the statement is cancelled and the transaction undone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC
from typing import Any

import sqlalchemy as sa

from pipelines.migration.errors import RunStoppedError

OURS = "esm-migration"
"""How every connection of a migration is named in the server's lists; its id follows."""

LOCK_WAIT_S = 60
"""How long a statement waits for a lock of others before it fails, in seconds."""

ASK_EVERY_S = 1.0

_activity = sa.table(
    "pg_stat_activity", *map(sa.column, ("pid", "application_name", "usename", "state", "xact_start"))
)
_locks = sa.table("pg_locks", *map(sa.column, ("pid", "relation", "locktype", "granted", "mode")))
_classes = sa.table("pg_class", *map(sa.column, ("oid", "relname", "relkind")))


class Wait:
    """What one transaction waits for. `held_by` is what it waited for last, or empty; `stopped` is the error
    that `tell` raised, with which the transaction is to end."""

    def __init__(self, url: sa.URL, tell: Callable[[str], None] | None) -> None:
        self._url, self._tell = url, tell
        self._over = threading.Event()
        self.held_by = ""
        self.stopped: RunStoppedError | None = None

    @contextmanager
    def watched(self, connection: sa.Connection) -> Iterator[None]:
        """Tell, once a second while the transaction on this connection waits, what it waits for."""
        driver: Any = connection.connection.dbapi_connection
        threading.Thread(target=self._watch, args=(driver.info.backend_pid,), daemon=True).start()
        try:
            yield
        finally:
            self._over.set()

    def _watch(self, pid: int) -> None:
        if self._over.wait(ASK_EVERY_S):
            return
        arguments = {"connect_timeout": 5, "application_name": OURS}
        engine = sa.create_engine(
            self._url, connect_args=arguments, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT"
        )
        with suppress(sa.exc.DBAPIError), engine.connect() as connection:  # untold, a wait is bounded too
            while not self._over.is_set():
                self._ask(connection, pid)
                self._over.wait(ASK_EVERY_S)

    def _ask(self, connection: sa.Connection, pid: int) -> None:
        held_by = _holder(connection, pid)
        if held_by and not self._over.is_set():
            self.held_by = held_by
            try:
                if self._tell is not None:
                    self._tell(held_by)
            except RunStoppedError as error:
                self.stopped = error
                connection.execute(sa.select(sa.func.pg_cancel_backend(pid)))


def _holder(connection: sa.Connection, pid: int) -> str:
    """What this backend waits for and who holds it, as a phrase; empty when it does not wait."""
    blocking = connection.scalar(sa.select(sa.func.pg_blocking_pids(pid)))
    if not blocking:
        return ""
    first = connection.execute(sa.select(_activity).where(_activity.c.pid == blocking[0])).one_or_none()
    if first is None:
        return ""
    more = f" and {len(blocking) - 1} others" if len(blocking) > 1 else ""
    return f"{_what(connection, pid, first.pid)} is held by {_who(first)}{more}"


def _what(connection: sa.Connection, waiting: int, holding: int) -> str:
    """The table of the lock; of a row's lock, which names none, the tables that both write."""
    relation = sa.select(_classes.c.relname).join(_locks, _locks.c.relation == _classes.c.oid)
    asked = relation.where(_locks.c.pid == waiting, sa.not_(_locks.c.granted))
    name = connection.scalar(asked)
    if name is not None:
        return f"the table {name!r}"
    if (
        connection.scalar(
            sa.select(_locks.c.locktype).where(_locks.c.pid == waiting, sa.not_(_locks.c.granted))
        )
        == "advisory"
    ):
        return "the target"
    writes = relation.where(_locks.c.mode == "RowExclusiveLock", _classes.c.relkind.in_(["r", "p"]))
    both = sa.intersect(writes.where(_locks.c.pid == waiting), writes.where(_locks.c.pid == holding))
    names = " or ".join(repr(each) for each in sorted(connection.scalars(both)))
    return f"a row of {names}" if names else "a row"


def _who(activity: Any) -> str:
    since = f" since {activity.xact_start.astimezone(UTC):%H:%M:%S} UTC" if activity.xact_start else ""
    doing = f", {activity.state}{since}" if activity.state else ""
    ours, _, migration_id = activity.application_name.partition(" ")
    if ours == OURS and migration_id:
        return f"migration {migration_id!r} (backend {activity.pid}{doing})"
    name = repr(activity.application_name) if activity.application_name else "a client without a name"
    return f"{name} (backend {activity.pid}, user {activity.usename!r}{doing})"
