"""The databases of one PostgreSQL server, as tests need them: emptied, cleared, or new."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol
from uuid import uuid4

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.pool import NullPool

from eventsourcing.storage.upgrades import upgrade

DISCONNECT_OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
CLEAR = """
ALTER TABLE events DISABLE TRIGGER USER;
ALTER TABLE states DISABLE TRIGGER USER;
TRUNCATE events, event_kinds, event_blocks, states;
ALTER TABLE states ENABLE ALWAYS TRIGGER states_audit_refuse_change;
ALTER TABLE states ENABLE ALWAYS TRIGGER states_audit_refuse_truncate;
ALTER TABLE events ENABLE ALWAYS TRIGGER events_hold_horizon;
ALTER TABLE events ENABLE ALWAYS TRIGGER events_refuse_change;
ALTER TABLE events ENABLE ALWAYS TRIGGER events_refuse_truncate;
ALTER SEQUENCE event_positions RESTART;
SELECT nextval('event_positions')
"""


class HasUrls(Protocol):
    """A running server, as far as a client is concerned."""

    def url(self, database: str, *, driver: str = "asyncpg") -> str:
        """The URL of a database."""


class Databases:
    """Makes databases on one server. No test here loses power: syncing is off."""

    def __init__(self, server: HasUrls) -> None:
        self._server = server
        self._connections = ExitStack()
        self._connected: dict[str, Connection] = {}
        self._execute("postgres", "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")

    def close(self) -> None:
        """Close the connections."""
        self._connections.close()

    def create(self) -> str:
        """Make a database and return its name."""
        name = f"test_{uuid4().hex}"
        self._execute("postgres", f"CREATE DATABASE {name}")
        return name

    def drop(self, name: str) -> None:
        """Drop a database with everyone in it."""
        self._execute("postgres", f"DROP DATABASE {name} WITH (FORCE)")

    def empty(self) -> str:
        """Empty one shared database; its URL. Making a database costs ten times as much."""
        if "shared" not in self._connected:
            self._execute("postgres", "CREATE DATABASE shared")
        self._execute("shared", DISCONNECT_OTHERS, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        return self._server.url("shared")

    def clear(self) -> str:
        """Clear one shared event store; its URL. For tests that leave the schema as it is."""
        if "shared_store" not in self._connected:
            self._execute("postgres", "CREATE DATABASE shared_store")
            with ThreadPoolExecutor(1) as pool:  # a loop may run in this thread already
                pool.submit(asyncio.run, upgrade(self._server.url("shared_store"))).result()
        self._execute("shared_store", DISCONNECT_OTHERS, CLEAR)
        return self._server.url("shared_store")

    def _execute(self, database: str, *statements: str) -> None:
        if database not in self._connected:
            connection = self._connections.enter_context(connected(self._server, database))
            self._connected[database] = connection
        for statement in statements:
            self._connected[database].execute(text(statement))


def execute(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Run one statement on a database as somebody else would; its rows, if it has any."""
    engine = create_engine(url.replace("+asyncpg", "+psycopg2"), poolclass=NullPool)
    with engine.begin() as connection:
        result = connection.execute(text(statement))
        return [tuple(row) for row in result] if result.returns_rows else []


@contextmanager
def connected(server: HasUrls, database: str) -> Iterator[Connection]:
    """A connection of the server's superuser to a database, each statement a transaction."""
    engine = create_engine(
        server.url(database, driver="psycopg2"), poolclass=NullPool, isolation_level="AUTOCOMMIT"
    )
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()
