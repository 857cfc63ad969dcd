"""Databases beside the event database, on the same server: Dagster's own, and the target by default."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from eventsourcing.config import Settings
from eventsourcing.errors import UnavailableError
from eventsourcing.storage.embedded import EmbeddedPostgres

DRIVER = "postgresql+psycopg2"
"""Named in full: another version of SQLAlchemy resolves a bare `postgresql` to another driver."""

_FIND = text("SELECT 1 FROM pg_database WHERE datname = :name")


def event_database_url(settings: Settings) -> str:
    """The URL of the event database; where none is named, the embedded server is started for it, and an
    older schema upgraded."""
    if settings.database_url is not None:
        return settings.database_url
    server = EmbeddedPostgres(settings.data_dir)
    server.start()
    return _driven(server.event_database())


def sibling_database(settings: Settings, name: str) -> str:
    """The psycopg2 URL of a database on the event database's server, created unless it is there.

    Raises UnavailableError when the server cannot be reached or lets us create none.
    """
    if settings.database_url is None:
        return _embedded(settings, name)
    neighbour = make_url(settings.database_url).set(drivername=DRIVER)
    _ensure(neighbour, name)
    return neighbour.set(database=name).render_as_string(hide_password=False)


def recreate_sibling(settings: Settings, name: str) -> None:
    """Make the database anew and empty; whoever is connected to it is cut off.

    Raises UnavailableError when the server cannot be reached or lets us make none.
    """
    neighbour = make_url(event_database_url(settings)).set(drivername=DRIVER)
    engine = create_engine(neighbour, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    quoted = engine.dialect.identifier_preparer.quote(name)
    try:
        with engine.connect() as connection:
            connection.execute(text(f"DROP DATABASE IF EXISTS {quoted} WITH (FORCE)"))
            connection.execute(text(f"CREATE DATABASE {quoted}"))
    except SQLAlchemyError as error:
        raise UnavailableError(f"the database {name!r} beside the events cannot be made anew") from error


def _embedded(settings: Settings, name: str) -> str:
    server = EmbeddedPostgres(settings.data_dir)
    server.start()
    server.ensure_database(name)
    return _driven(server.url(name))


def _driven(url: str) -> str:
    return make_url(url).set(drivername=DRIVER).render_as_string(hide_password=False)


def _ensure(neighbour: URL, name: str) -> None:
    engine = create_engine(neighbour, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            if connection.execute(_FIND, {"name": name}).scalar() is None:
                _create(engine, connection, name)
    except SQLAlchemyError as error:
        raise UnavailableError(
            f"there is no database {name!r} beside the events, nor can it be made"
        ) from error


def _create(engine: Engine, connection: Connection, name: str) -> None:
    quoted = engine.dialect.identifier_preparer.quote(name)
    try:
        connection.execute(text(f"CREATE DATABASE {quoted}"))
    except SQLAlchemyError:
        # Several processes may start at once: who comes second finds what it wanted to make.
        if connection.execute(_FIND, {"name": name}).scalar() is None:
            raise
