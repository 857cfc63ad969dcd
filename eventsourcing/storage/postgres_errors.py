"""Translate what asyncpg raises into our errors: by SQLSTATE and constraint name, never by text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
from sqlalchemy.exc import DBAPIError

from eventsourcing.errors import ConfigurationError, InvalidEventError, SchemaError, UnavailableError

RACE = (asyncpg.UniqueViolationError, asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
"""What an append may meet when others append at the same time."""

_OUR_CONSTRAINTS = {"events_event_id_key", "events_stream_version_key"}
_UNAVAILABLE = {"08", "53", "57", "58"}  # connection, resources, operator intervention, system
_REFUSED = {"28", "3D"}  # authorisation, no such database


def race_lost(error: asyncpg.PostgresError) -> bool:
    """Whether another append was first, so that looking again can settle it."""
    if isinstance(error, asyncpg.UniqueViolationError):
        return error.constraint_name in _OUR_CONSTRAINTS
    return True


@contextmanager
def translated(*, races_pass: bool = False) -> Iterator[None]:
    """Turn driver errors into ours; `races_pass` where the caller decides about a lost race itself."""
    try:
        yield
    except DBAPIError as error:
        origin = error.orig.__cause__ if error.orig is not None else None
        raise _translation(origin or error) from error
    except RACE as error:
        if races_pass:
            raise
        raise UnavailableError(f"another transaction was first: {error}") from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise _translation(error) from error


def _translation(error: BaseException) -> Exception:
    state = getattr(error, "sqlstate", None) or ""
    if state[:2] in _REFUSED:
        return ConfigurationError(f"the database refuses the connection: {error}")
    if state[:2] == "42" and state in {"42P01", "42703"}:
        return SchemaError(f"{error}; run `esm db upgrade`")
    if state[:2] == "22":
        return InvalidEventError(f"the database refuses a value: {error}")
    if not state or state[:2] in _UNAVAILABLE or state == "25006":
        return UnavailableError(f"the database is not available: {str(error) or type(error).__name__}")
    return error if isinstance(error, Exception) else UnavailableError(str(error))
