"""DatabasesResource: the sources and targets that jobs may connect to, by name only.

A run's configuration holds names; the addresses come from the settings of the process (`connections.py`).
"""

from __future__ import annotations

import dagster as dg

from eventsourcing.config import Settings
from resources.connections import source_url, target_url


class DatabasesResource(dg.ConfigurableResource):  # type: ignore[type-arg]  # its value is itself
    """Names in, URLs out."""

    def source_url(self, name: str) -> str:
        """The URL of a source. Raises NotFoundError for a name that is not configured."""
        return source_url(Settings.load(), name)

    def target_url(self, name: str) -> str:
        """The URL of a target. Raises NotFoundError for a name that is not configured."""
        return target_url(Settings.load(), name)
