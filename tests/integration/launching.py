"""What the tests of launchers share: databases and a home of their own, for they take seconds to warm."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

from eventsourcing.config import Settings
from eventsourcing.storage.embedded import EmbeddedPostgres


def launcher_settings(server: EmbeddedPostgres, home: Path, **changes: Any) -> Settings:
    """Settings over two new databases, of events and of Dagster, and a data directory."""
    names = (f"events_{uuid4().hex}", f"dagster_{uuid4().hex}")
    for name in names:
        server.ensure_database(name)
    return Settings(
        database_url=server.url(names[0]),
        dagster_database_url=server.url(names[1], driver="psycopg2"),
        data_dir=home,
        **changes,
    )
