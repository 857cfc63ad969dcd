"""Counting events where they are stored, in PostgreSQL."""

from __future__ import annotations

from typing import Any

from eventsourcing.canonical import decode
from eventsourcing.storage.postgres_pool import ConnectionPool
from eventsourcing.storage.statements import statements
from eventsourcing.storage.tallies import Tally, TallyQuery, tally

_TALLIES = statements("tallies")


async def count_in_database(pool: ConnectionPool, query: TallyQuery) -> list[Tally]:
    """Count what is stored in PostgreSQL."""
    types = None if query.types is None else sorted(map(str, query.types))
    parameters: list[Any] = [query.after, query.to, types]
    statement = _TALLIES["tally_types" if query.field is None else "tally_values"]
    if query.field is not None:
        parameters.append(query.field)
    rows = await pool.fetch(statement, *parameters)
    return [
        tally(
            row["event_type"],
            row["aggregate_type"],
            row["correlation_id"],
            {} if query.field is None else {query.field: row["value"] and decode(row["value"])},
            row["latest"],
            row["times"],
        )
        for row in rows
    ]
