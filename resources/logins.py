"""Users of the database server, one for each process that connects: no more rights than it needs."""

from __future__ import annotations

from typing import Any

from psycopg2.extensions import encrypt_password
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from eventsourcing.errors import ConfigurationError, UnavailableError
from resources.siblings import DRIVER

_FIND_ROLE = text("SELECT 1 FROM pg_roles WHERE rolname = :name")
_FIND_DATABASE = text("SELECT 1 FROM pg_database WHERE datname = :name")


def admit(owner_url: str, url: str, *, role: str | None = None) -> str:
    """Make a URL true: its user exists, with its password, and may use its database; return the user.

    As a member of `role` it has the rights of that role; without one it owns the database, which is made
    unless it is there. Repeating it changes nothing, but for a password that is another one now. The
    server is told a verifier of the password, so no password stands in its log. Raises ConfigurationError,
    with nothing changed, for a URL without user, password or database, or for one whose user is the
    owner, and UnavailableError.
    """
    owner, wanted = make_url(owner_url).set(drivername=DRIVER), make_url(url)
    if not (wanted.username and wanted.password and wanted.database):
        raise ConfigurationError("the URL must name a user, a password and a database")
    if wanted.username == owner.username:
        raise ConfigurationError(f"{wanted.username} owns the event database; another user is to be admitted")
    engine = create_engine(owner, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            _ensure_login(connection, wanted)
            if role is not None:
                connection.execute(text(f"GRANT {_quoted(connection, role)} TO {_user(connection, wanted)}"))
            else:
                _ensure_database(connection, wanted)
    except SQLAlchemyError as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise UnavailableError(f"{wanted.username} cannot be admitted: {reason}") from error
    return wanted.username


def _ensure_login(connection: Connection, wanted: URL) -> None:
    raw: Any = connection.connection.dbapi_connection
    secret = encrypt_password(str(wanted.password), str(wanted.username), raw, "scram-sha-256")
    known = connection.execute(_FIND_ROLE, {"name": wanted.username}).scalar()
    verb = "ALTER" if known else "CREATE"
    statement = text(f"{verb} ROLE {_user(connection, wanted)} LOGIN PASSWORD :verifier")
    connection.execute(statement, {"verifier": secret})


def _ensure_database(connection: Connection, wanted: URL) -> None:
    if connection.execute(_FIND_DATABASE, {"name": wanted.database}).scalar() is None:
        name = _quoted(connection, str(wanted.database))
        connection.execute(text(f"CREATE DATABASE {name} OWNER {_user(connection, wanted)}"))
        connection.execute(text(f"REVOKE CONNECT, TEMPORARY ON DATABASE {name} FROM PUBLIC"))


def _user(connection: Connection, wanted: URL) -> str:
    return _quoted(connection, str(wanted.username))


def _quoted(connection: Connection, name: str) -> str:
    return connection.dialect.identifier_preparer.quote(name)
