"""What each migration was asked to be: rollback and resume find mapping, source and target by its id."""

from __future__ import annotations

from eventsourcing.errors import NotFoundError
from eventsourcing.storage.base import StateStorage, StateTable
from pipelines.config import MigrateConfig

MIGRATION_REQUESTS = StateTable("migration-requests")
"""Key: migration_id. Value: the configuration of its newest run."""


class MigrationRequests:
    """The configurations of migrations by their id."""

    def __init__(self, storage: StateStorage) -> None:
        self._storage = storage

    async def keep(self, migration_id: str, config: MigrateConfig) -> None:
        """Keep the configuration of a migration's newest run."""
        async with self._storage.transaction() as transaction:
            await transaction.put(MIGRATION_REQUESTS, migration_id, config.model_dump(mode="json"))

    async def get(self, migration_id: str) -> MigrateConfig:
        """The configuration of a migration. Raises NotFoundError."""
        async with self._storage.transaction() as transaction:
            found = await transaction.get(MIGRATION_REQUESTS, migration_id)
        if found is None:
            raise NotFoundError("migration", migration_id)
        return MigrateConfig(**found)
