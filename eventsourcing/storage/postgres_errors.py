"""Translate what asyncpg raises into our errors: by SQLSTATE and constraint name, never by text."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
from sqlalchemy.exc import DBAPIError

from eventsourcing.errors import (
    ConfigurationError,
    InvalidEventError,
    SchemaError,
    StateForbidsError,
    UnavailableError,
)

RACE = (asyncpg.UniqueViolationError, asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
"""What an append may meet when others append at the same time."""

DRIVER = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""What the driver raises: the server's answer, its own complaint, or the network's."""

_OUR_CONSTRAINTS = {"events_event_id_key", "events_stream_version_key"}
_REFUSED = {"28", "3D"}  # authorisation, no such database
_SCHEMA = {"42P01", "42703", "42883"}  # no such table, column, function
_AWAY = {
    "25006": "the database takes no writes now: it is a standby, or set to read only",
    "25P03": "the transaction stood idle for too long and was undone",
    "25P04": "the transaction took too long and was undone",
    "53100": "the database's disk is full",
    "53200": "the database is out of memory",
    "53300": "the database takes no more connections",
    "55P03": "a lock was not to be had in time",
    "57014": "the statement took too long and was undone",
    "57P03": "the database is starting up or shutting down",
}
"""What passes, by SQLSTATE; the server has undone the statement."""
_AWAY_CLASSES = {"53", "57", "58"}  # resources, operator intervention, system
_CUT = {"57P01", "57P02"}  # the server ended the connection: shut down, or crashed
_STALE = {"25006", "57P03"}
"""What a connection to a server that is not, or is no longer, the primary answers."""


def race_lost(error: asyncpg.PostgresError) -> bool:
    """Whether another append was first, so that looking again can settle it."""
    if isinstance(error, asyncpg.UniqueViolationError):
        return error.constraint_name in _OUR_CONSTRAINTS
    return True


def connection_lost(error: BaseException) -> bool:
    """Whether the connection ended, or stopped answering, before the outcome was known."""
    if isinstance(error, asyncpg.PostgresError):
        return error.sqlstate in _CUT or (error.sqlstate or "08")[:2] == "08"
    return isinstance(error, DRIVER) and not isinstance(error, ValueError)


def other_server_needed(error: BaseException) -> bool:
    """Whether every connection of the pool is in doubt, and new ones may find a server that serves."""
    return connection_lost(error) or getattr(error, "sqlstate", None) in _STALE


@contextmanager
def translated(*, races_pass: bool = False, sent: bool = True) -> Iterator[None]:
    """Turn driver errors into ours; `races_pass` where the caller decides about a lost race itself.

    `sent` says that a statement is on its way, so that a lost connection leaves its outcome unknown.
    """
    try:
        yield
    except DBAPIError as error:
        origin = error.orig.__cause__ if error.orig is not None else None
        raise _translation(origin or error, sent=False) from error
    except RACE as error:
        if races_pass:
            raise
        raise UnavailableError(f"another transaction was first: {error}") from error
    except DRIVER as error:
        raise _translation(error, sent=sent) from error


def _translation(error: BaseException, *, sent: bool) -> Exception:
    state = getattr(error, "sqlstate", None) or ""
    reason = str(error) or type(error).__name__
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConfigurationError(f"the database's certificate is not to be trusted: {error.verify_message}")
    if state[:2] in _REFUSED:
        return ConfigurationError(f"the database refuses the connection: {reason}")
    if state == "42501":
        return ConfigurationError(
            f"the database refuses this to its user: {reason}; see docs/guides/roles.md"
        )
    if state == "23001":
        return StateForbidsError("stored row", getattr(error, "table_name", None) or "", "never changed")
    if state in _SCHEMA:
        return SchemaError(f"{reason}; run `esm db upgrade`")
    if state[:2] == "22" or isinstance(error, ValueError):
        return InvalidEventError(f"the database refuses a value: {reason}")
    if connection_lost(error):
        return UnavailableError(
            f"the database is not available: {reason}", outcome_unknown=sent and state not in _AWAY
        )
    if state in _AWAY or state[:2] in _AWAY_CLASSES:
        return UnavailableError(f"{_AWAY.get(state, 'the database is not available')}: {reason}")
    return error if isinstance(error, Exception) else UnavailableError(reason)
