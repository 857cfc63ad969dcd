"""DatabasesResource: the sources and targets that jobs may connect to, by name only.

A run's configuration holds names; the addresses come from the settings of the process. Sources are
files below one directory, the target is one database, and the demo has one of its own.
"""

from __future__ import annotations

from pathlib import Path

import dagster as dg
from sqlalchemy.engine import URL

from eventsourcing.config import Settings
from eventsourcing.errors import NotFoundError
from resources.siblings import sibling_database

TARGET = "target"
"""The name under which jobs know the configured target, and of its database where none is configured."""

DEMO_TARGET = "demo-target"
"""The target of the demo: a database beside the events that every demo makes anew."""


class DatabasesResource(dg.ConfigurableResource):  # type: ignore[type-arg]  # its value is itself
    """Names in, URLs out."""

    def source_url(self, name: str) -> str:
        """The URL of a source file. Raises NotFoundError for a name outside the directory or no file."""
        directory = source_directory(Settings.load()).resolve()
        path = (directory / name).resolve()
        if not path.is_relative_to(directory) or not path.is_file():
            raise NotFoundError("source", name)
        return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)

    def target_url(self, name: str) -> str:
        """The URL of a target. Raises NotFoundError for another name than these two."""
        settings = Settings.load()
        if name == DEMO_TARGET:
            return sibling_database(settings, DEMO_TARGET.replace("-", "_"))
        if name != TARGET:
            raise NotFoundError("target", name)
        return settings.target_database_url or sibling_database(settings, TARGET)


def source_directory(settings: Settings) -> Path:
    """Where source files lie."""
    return settings.source_dir or settings.data_dir / "sources"
