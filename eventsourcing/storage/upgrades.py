"""Upgrades of the event database by Alembic, which is loaded only where a schema is made or changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from eventsourcing.errors import SchemaError
from eventsourcing.storage.postgres_errors import translated
from eventsourcing.storage.postgres_pool import CONNECT_TIMEOUT_S, dsn
from eventsourcing.storage.schema import MIGRATIONS, VERSION_TABLE, newest_version

_UPGRADE_LOCK = "SELECT pg_advisory_xact_lock(17747, 1)"

Result = TypeVar("Result")


async def upgrade(database_url: str | URL) -> str:
    """Bring the schema to the newest version, whatever it is; return that version.

    One process upgrades at a time; the others wait and find nothing left to do.
    """
    return await _run(make_url(database_url), _upgrade)


async def upgrade_if_empty(database_url: str | URL) -> None:
    """Create the schema in a database without one. Raises SchemaError for an older or newer one."""
    await _run(make_url(database_url), _upgrade_if_empty)


async def grant_rights(database_url: str | URL) -> list[str]:
    """Give the roles of the event store their rights, in a database of the newest schema.

    Creates roles that do not exist yet; returns those that this user may not create.
    """
    return await _run(make_url(database_url), _grant_rights)


async def _run(url: URL, work: Callable[[Connection], Result]) -> Result:
    address = dsn(url)
    engine = create_async_engine(
        "postgresql+asyncpg://",
        poolclass=NullPool,
        async_creator=lambda: asyncpg.connect(address, timeout=CONNECT_TIMEOUT_S),
    )
    try:
        with translated(sent=False):
            async with engine.begin() as connection:
                return await connection.run_sync(work)
    finally:
        await engine.dispose()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def _upgrade(connection: Connection) -> str:
    connection.execute(text(_UPGRADE_LOCK))
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return newest_version()


def _grant_rights(connection: Connection) -> list[str]:
    connection.execute(text(_UPGRADE_LOCK))
    missing = connection.execute(text("SELECT grant_event_store_rights()")).scalar_one()
    return list(missing)


def _upgrade_if_empty(connection: Connection) -> None:
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    current, needed = context.get_current_revision(), newest_version()
    if current == needed:
        return
    if current is None and not inspect(connection).has_table("events"):
        _upgrade(connection)
        return
    raise SchemaError(
        f"the event database has schema {current or 'of another program'}, this version needs {needed}; "
        "run `esm db upgrade`"
    )
