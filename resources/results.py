"""What a job found out, kept as a row of ours: Dagster's history has no call that returns a result."""

from __future__ import annotations

import re
from typing import Any

from eventsourcing.errors import EventSourcingError
from eventsourcing.storage.base import StateStorage, StateTable

JOB_RESULTS = StateTable("job-results")
"""Key: the result's id. Value: {result} or {error: {kind, message}}."""


class JobResults:
    """Results and errors of jobs by their id. A repeated id replaces what was there."""

    def __init__(self, storage: StateStorage) -> None:
        self._storage = storage

    async def put(self, result_id: str, result: dict[str, Any]) -> None:
        """Keep what the job found."""
        async with self._storage.transaction() as transaction:
            await transaction.put(JOB_RESULTS, result_id, {"result": result})

    async def put_error(self, result_id: str, error: EventSourcingError) -> None:
        """Keep why the job found nothing; the kind is the error's name, `NotFoundError` → `not_found`."""
        value = {"error": {"kind": error_kind(error), "message": str(error)}}
        async with self._storage.transaction() as transaction:
            await transaction.put(JOB_RESULTS, result_id, value)

    async def get(self, result_id: str) -> dict[str, Any] | None:
        """{result} or {error: {kind, message}}, or None while there is none."""
        async with self._storage.transaction() as transaction:
            value: dict[str, Any] | None = await transaction.get(JOB_RESULTS, result_id)
            return value


def error_kind(error: EventSourcingError) -> str:
    """The name of an error in words: `NotFoundError` → `not_found`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__.removesuffix("Error")).lower()
