"""A store on PostgreSQL for the tests over Kafka."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from eventsourcing import EventStore
from eventsourcing.storage.postgres import PostgresStorage


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[EventStore]:
    """An empty store on PostgreSQL."""
    async with EventStore(storage=PostgresStorage(store_url)) as made:
        yield made
