"""Whether jobs could be started here, asked without starting what would start them.

Each question is bounded in time and loads nothing of Dagster. What is told names no address: `/health` shows
it to everybody, and the log has the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from api.launcher import NotReadyError
from eventsourcing.config import Settings
from eventsourcing.errors import EventSourcingError
from resources.dagster_home import LOCATION, dagster_database_url

if TYPE_CHECKING:
    import httpx2

_TIMEOUT_S = 3.0

_LOCATIONS = """{
  workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError { __typename } } } }
}"""


def readiness(settings: Settings) -> Callable[[], Awaitable[None]]:
    """What asks whether the launcher of these settings could start jobs; it raises NotReadyError."""

    async def require() -> None:
        await asyncio.to_thread(_require_storage, settings)
        if settings.launcher == "queue":
            import httpx2

            async with httpx2.AsyncClient() as client:
                await require_webserver(client, webserver_url(settings))

    return require


def webserver_url(settings: Settings) -> str:
    """Where Dagster's webserver answers."""
    return (settings.dagster_url or f"http://127.0.0.1:{settings.dagster_port}").rstrip("/")


async def require_webserver(client: httpx2.AsyncClient, url: str) -> None:
    """Raise NotReadyError unless Dagster's webserver answers there and has loaded our jobs."""
    import httpx2

    try:
        answer = await client.post(f"{url}/graphql", json={"query": _LOCATIONS}, timeout=_TIMEOUT_S)
        answer.raise_for_status()
        data: dict[str, Any] = answer.json()["data"]
    except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
        raise NotReadyError("Dagster's webserver does not answer") from error
    entries = data["workspaceOrError"].get("locationEntries", [])
    kinds = {entry["name"]: (entry["locationOrLoadError"] or {}).get("__typename") for entry in entries}
    if kinds.get(LOCATION) != "RepositoryLocation":
        raise NotReadyError(f"Dagster's webserver has not loaded the code location {LOCATION!r}")


def _require_storage(settings: Settings) -> None:
    """Raise NotReadyError unless Dagster's storage answers; unset, its database is made beside the events."""
    try:
        url = dagster_database_url(settings)
        engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": int(_TIMEOUT_S)})
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    except (EventSourcingError, SQLAlchemyError) as error:
        raise NotReadyError("Dagster's storage does not answer") from error
