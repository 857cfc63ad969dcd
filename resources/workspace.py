"""WorkspaceResource: the mapping files, the work folders and the hashing secret of migrations."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import dagster as dg

from eventsourcing.config import Settings
from eventsourcing.errors import NotFoundError


class WorkspaceResource(dg.ConfigurableResource):  # type: ignore[type-arg]  # its value is itself
    """Places below the data directory, by name."""

    def folder(self) -> Path:
        """Where migrations keep their work files, a folder each; nobody else may read them."""
        folder = Settings.load().data_dir / "migrations"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def mapping(self, name: str) -> Path:
        """The mapping file of a name below `mappings`, with or without `.yaml`, or of a path.

        Raises NotFoundError.
        """
        shelf = Settings.load().data_dir / "mappings"
        for candidate in (Path(name), shelf / name, shelf / f"{name}.yaml"):
            if candidate.is_file():
                return candidate.resolve()
        raise NotFoundError("mapping", name)

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
