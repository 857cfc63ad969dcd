"""The schema of the event database: found as this code needs it, made where there is none, else refused."""

from __future__ import annotations

from pathlib import Path

import asyncpg
from sqlalchemy.engine import URL, make_url

from eventsourcing.storage.postgres_errors import translated
from eventsourcing.storage.postgres_pool import CONNECT_TIMEOUT_S, dsn
from eventsourcing.storage.statements import statements

VERSION_TABLE = "event_store_version"
MIGRATIONS = Path(__file__).parent / "migrations"
_SCHEMA = statements("schema")


async def require_schema(database_url: str | URL) -> None:
    """Return once the database has the schema that this code needs, which is made where there is none.

    Raises SchemaError for an older or newer one.
    """
    if await schema_version(database_url) != newest_version():
        from eventsourcing.storage.upgrades import upgrade_if_empty  # loads Alembic, which few starts need

        await upgrade_if_empty(database_url)


async def schema_version(database_url: str | URL) -> str | None:
    """The version found in the database; None when it has no schema of ours."""
    with translated(sent=False):
        connection = await asyncpg.connect(dsn(make_url(database_url)), timeout=CONNECT_TIMEOUT_S)
        try:
            version: str | None = await connection.fetchval(_SCHEMA["version"])
        except asyncpg.UndefinedTableError:
            return None
        finally:
            await connection.close(timeout=CONNECT_TIMEOUT_S)
    return version


def newest_version() -> str:
    """The version this code needs: that of the last migration, by which its file is named."""
    return max(path.name.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))
