"""WorkspaceResource: the mapping files, the work folders and the hashing secret of migrations."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import dagster as dg

from eventsourcing.config import Settings
from resources.connections import mapping_file


class WorkspaceResource(dg.ConfigurableResource):  # type: ignore[type-arg]  # its value is itself
    """Places below the data directory, by name."""

    def folder(self) -> Path:
        """Where migrations keep their work files, a folder each; nobody else may read them."""
        folder = Settings.load().data_dir / "migrations"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def mapping(self, name: str) -> Path:
        """The mapping file of a name. Raises NotFoundError."""
        return mapping_file(Settings.load(), name)

    def secret(self) -> str:
        """The key of the hashes that stand for secret fields: configured, or made once and kept."""
        settings = Settings.load()
        if settings.hmac_secret is not None:
            return settings.hmac_secret
        path = settings.data_dir / "hmac.key"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return path.read_text("utf-8")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(made := secrets.token_hex(32))
        return made
