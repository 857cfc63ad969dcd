"""The catalogue of types seen: which event types occur with an aggregate type.

It is written before the first event of a kind, and remembered, so that appending costs nothing later.
"""

from __future__ import annotations

from eventsourcing.query import EventQuery
from eventsourcing.storage.postgres_pool import ConnectionPool
from eventsourcing.storage.statements import statements

_EVENTS = statements("events")

Kind = tuple[str, str]
"""An aggregate type and an event type."""


class EventKinds:
    """The catalogue, and what of it is known to be written."""

    def __init__(self) -> None:
        self._known: set[Kind] = set()

    def forget(self) -> None:
        """Know nothing again: the database may have been restored to an earlier state."""
        self._known.clear()

    async def add(self, pool: ConnectionPool, kinds: set[Kind]) -> None:
        """Make sure that the kinds are in the catalogue."""
        new = sorted(kinds - self._known)
        if not new:
            return
        await pool.fetch(_EVENTS["add_kinds"], *map(list, zip(*new, strict=True)))
        self._known.update(new)

    async def narrowed(self, pool: ConnectionPool, query: EventQuery) -> EventQuery | None:
        """The query with its aggregate types said as event types too; None when no event can match."""
        rows = await pool.fetch(_EVENTS["types_of_kinds"], list(query.aggregate_types))
        return query.where(event_types=tuple(row["event_type"] for row in rows)) if rows else None
