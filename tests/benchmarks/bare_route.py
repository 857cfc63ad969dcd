"""The baseline of the HTTP benchmark: a FastAPI route that inserts what it is sent, with no guarantee."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import uuid_utils.compat
import uvicorn
from fastapi import FastAPI, Request
from pydantic import BaseModel

from tests.benchmarks.measure import plain_url

INSERT = """
INSERT INTO events (event_id, event_type, aggregate_id, aggregate_type, event_version, "timestamp", metadata,
                    data)
VALUES ($1, $2, $3, $4, 1, $5, '{}', $6) RETURNING position
"""


class Event(BaseModel):
    """An event, as a bare route would take it."""

    event_type: str
    aggregate_id: str
    aggregate_type: str
    data: dict[str, Any]


class Stored(Event):
    """An event, as a bare route would answer it."""

    event_id: UUID
    timestamp: datetime
    position: int


def _row(event: Event) -> tuple[Any, ...]:
    data = orjson.dumps(event.data).decode()
    now = datetime.now(UTC)
    return (uuid_utils.compat.uuid7(), event.event_type, event.aggregate_id, event.aggregate_type, now, data)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    url = plain_url(os.environ["DATABASE_URL"])
    async with asyncpg.create_pool(url, min_size=8, max_size=8) as app.state.pool:
        yield


app = FastAPI(lifespan=_lifespan)


@app.post("/events", status_code=201)
async def publish(request: Request, event: Event) -> Stored:
    """One row."""
    row = _row(event)
    position = await request.app.state.pool.fetchval(INSERT, *row)
    return Stored(**event.model_dump(), event_id=row[0], timestamp=row[4], position=position)


@app.post("/events/batch", status_code=201)
async def publish_batch(request: Request, events: list[Event]) -> dict[str, Any]:
    """Many rows in one transaction."""
    rows = [_row(event) for event in events]
    async with request.app.state.pool.acquire() as connection, connection.transaction():
        await connection.executemany(INSERT, rows)
    return {"event_ids": [row[0] for row in rows]}


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["ESM_EVENT_SERVICE_PORT"]), log_level="warning", access_log=False)
