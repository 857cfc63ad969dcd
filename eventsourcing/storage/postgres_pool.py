"""Connections to the event database: waits are bounded, and what is dead is replaced on the next use.

A connection that broke or stopped answering is dropped at once, and all others of the pool with it as
soon as each is next used: after a failover they lead to the wrong server. Each new connection is looked
at before it serves: a standby is refused, and so is a store that ends below a position already seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any
from weakref import WeakSet

import asyncpg
from sqlalchemy.engine import URL

from eventsourcing.errors import CursorAheadError, UnavailableError
from eventsourcing.metrics import gauge
from eventsourcing.storage.base import CHECKPOINTS, LOST_POSITIONS
from eventsourcing.storage.postgres_errors import DRIVER, connection_lost, other_server_needed, translated
from eventsourcing.storage.postgres_rows import use_canonical_json
from eventsourcing.storage.statements import statements

CONNECT_TIMEOUT_S = 5.0
"""How long a server may take to let a connection in."""

ANSWER_GRACE_S = 5.0
"""How long after its own limit a server may still answer, before its connection is given up."""

_RELEASE_TIMEOUT_S = 2.0
_CLOSE_TIMEOUT_S = 5.0
_EVENTS = statements("events")


def dsn(url: URL) -> str:
    """A URL as asyncpg takes it."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


class ConnectionPool:
    """At most `size` connections, each with the server settings given; `before_session` is called before a
    new one serves. The server ends any statement after `statement_timeout_s`, and any transaction of ours
    that stands idle as long."""

    def __init__(
        self,
        url: URL,
        *,
        size: int,
        settings: Mapping[str, str],
        statement_timeout_s: float,
        wait_s: float,
        before_session: Callable[[], None],
    ) -> None:
        self._url, self._size, self._settings = url, size, settings
        self._statement_timeout_s, self._wait_s = statement_timeout_s, wait_s
        self._before_session = before_session
        self._seen = 0
        self._pool: asyncpg.Pool | None = None
        self._waiting = 0
        _pools.add(self)

    async def open(self) -> None:
        """Connect once. Raises UnavailableError, ConfigurationError, CursorAheadError; nothing stays open."""
        limit_ms = str(max(1, round(self._statement_timeout_s * 1000)))
        with translated(sent=False):
            self._pool = await asyncpg.create_pool(
                dsn(self._url),
                min_size=0,
                max_size=self._size,
                init=self._prepare,
                reset=_keep_session,
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=self._statement_timeout_s + ANSWER_GRACE_S,
                server_settings={
                    **self._settings,
                    "statement_timeout": limit_ms,
                    "idle_in_transaction_session_timeout": limit_ms,
                },
            )
        try:
            async with self.acquire():
                pass
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close every connection; those that do not end within five seconds are dropped."""
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                await asyncio.wait_for(pool.close(), timeout=_CLOSE_TIMEOUT_S)
            except TimeoutError:
                pool.terminate()

    @property
    def driver(self) -> asyncpg.Pool:
        """The driver's own pool, without our guards. Raises UnavailableError while closed."""
        if self._pool is None:
            raise UnavailableError("the storage is not open")
        return self._pool

    def saw(self, position: int) -> None:
        """Remember that the store reached a position: no server that ends below it is taken any more."""
        self._seen = max(self._seen, position)

    @asynccontextmanager
    async def acquire(self, *, limit_s: float | None = None) -> AsyncIterator[asyncpg.Connection]:
        """A connection of one's own; after `limit_s` it is dropped, and what it was doing undone.

        Raises UnavailableError when none is to be had in time.
        """
        pool = self.driver
        connection = await self._acquired(pool)
        limit = limit_s and asyncio.get_running_loop().call_later(limit_s, _drop, connection)
        try:
            yield connection
        except (UnavailableError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            await _judge(pool, connection, error)
            raise
        finally:
            if limit:
                limit.cancel()
            with suppress(*DRIVER):  # a connection that does not come to rest is dropped
                await pool.release(connection, timeout=_RELEASE_TIMEOUT_S)

    @asynccontextmanager
    async def transaction(
        self, *, limit_s: float | None = None, readonly: bool = False
    ) -> AsyncIterator[asyncpg.Connection]:
        """A connection in a transaction that ends with the block, after `limit_s` at the latest. Lost races
        pass as the driver raises them."""
        async with self.acquire(limit_s=limit_s) as connection:
            with translated(races_pass=True):
                async with connection.transaction(readonly=readonly):
                    yield connection

    async def fetch(self, statement: str, *values: Any, races_pass: bool = False) -> list[asyncpg.Record]:
        """The rows of one statement. See postgres_errors.translated for what it raises."""
        async with self.acquire() as connection:
            with translated(races_pass=races_pass):
                rows: list[asyncpg.Record] = await connection.fetch(statement, *values)
        return rows

    async def fetchval(self, statement: str, *values: Any) -> Any:
        """The first value of one statement's first row."""
        async with self.acquire() as connection:
            with translated():
                return await connection.fetchval(statement, *values)

    def load(self) -> tuple[int, int]:
        """How many connections are in use, and how many calls wait for one."""
        pool = self._pool
        return (0 if pool is None else pool.get_size() - pool.get_idle_size()), self._waiting

    async def _acquired(self, pool: asyncpg.Pool) -> asyncpg.Connection:
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait_s):
                with translated(sent=False):
                    return await pool.acquire()
        except TimeoutError as error:
            raise UnavailableError(
                f"no connection to the database within {self._wait_s:g} s; the pool has {self._size}"
            ) from error
        finally:
            self._waiting -= 1

    async def _prepare(self, connection: asyncpg.Connection) -> None:
        """Look at the server, and let JSON pass through as bytes of ours."""
        self._before_session()
        await use_canonical_json(connection)
        seen = self._seen  # before asking: others go on appending meanwhile
        found = await connection.fetchrow(_EVENTS["state_of_server"], LOST_POSITIONS.name, CHECKPOINTS.name)
        if found["synchronous_commit"] == "off":
            await connection.execute(_EVENTS["wait_for_the_log"])
        if found["standby"]:
            raise UnavailableError("the database is a standby; readers and writers need the primary")
        known = max(seen, found["checkpoint"])
        if known > found["head"]:
            raise CursorAheadError(known, found["head"])


async def _judge(pool: asyncpg.Pool, connection: asyncpg.Connection, error: Exception) -> None:
    """Drop a connection that is lost, and let the others be replaced where one tells of another server."""
    cause = error.__cause__ if isinstance(error, UnavailableError) else error
    if cause is None or not other_server_needed(cause):
        return
    await pool.expire_connections()
    if connection_lost(cause):
        _drop(connection)


def _drop(connection: asyncpg.Connection) -> None:
    with suppress(asyncpg.InterfaceError):  # the pool noticed first, and took it back
        connection.terminate()


_pools: WeakSet[ConnectionPool] = WeakSet()


def _in_use() -> dict[tuple[str, ...], float]:
    return {(): sum(pool.load()[0] for pool in list(_pools))}


def _waiting() -> dict[tuple[str, ...], float]:
    return {(): sum(pool.load()[1] for pool in list(_pools))}


gauge("es_pool_in_use", "Connections to the event database in use.", _in_use)
gauge("es_pool_waiting", "Calls that wait for a connection to the event database.", _waiting)


async def _keep_session(connection: asyncpg.Connection) -> None:
    """Spare the round trip that resets a session: nothing here leaves anything set in one."""
