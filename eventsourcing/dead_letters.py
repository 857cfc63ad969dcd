"""Dead letters: events that a consumer group could not process, and the aggregates parked behind them.

Once an event of an aggregate is a dead letter, later events of that aggregate wait behind it in the
same table, in version order: nothing is skipped in silence and nothing overtakes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from eventsourcing.errors import HandlerError
from eventsourcing.events import BaseEvent
from eventsourcing.folds import position_of
from eventsourcing.storage.base import StateTable, StateTransaction, Storage

DEAD_LETTERS = StateTable("dead-letters")
"""Key: group, aggregate_id and position. Value: {status, event, error, handler, attempts, parked_at}."""

PARKED = StateTable("parked-aggregates")
"""Key: group and aggregate_id."""

_SEPARATOR = "\x1f"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One event that a group did not process: it failed, or it waits behind one that failed."""

    event: BaseEvent
    failure: HandlerError | None = None

    def value(self) -> dict[str, Any]:
        """The row to store."""
        cause = self.failure and (self.failure.__cause__ or self.failure)
        return {
            "status": "failed" if self.failure else "waiting",
            "event": self.event.model_dump(),
            "error": f"{type(cause).__name__}: {cause}"[:1000] if cause else None,
            "handler": self.failure.handler if self.failure else None,
            "attempts": self.failure.attempts if self.failure else 0,
            "parked_at": datetime.now(UTC),
        }


async def park(transaction: StateTransaction, group: str, letters: list[DeadLetter]) -> None:
    """Store dead letters and park their aggregates, in the caller's transaction."""
    for letter in letters:
        event = letter.event
        key = f"{group}{_SEPARATOR}{event.aggregate_id}{_SEPARATOR}{position_of(event):020d}"
        await transaction.put(DEAD_LETTERS, key, letter.value())
        await transaction.add(
            PARKED, f"{group}{_SEPARATOR}{event.aggregate_id}", {"since": position_of(event)}
        )


async def parked_aggregates(storage: Storage, group: str) -> set[str]:
    """The aggregates of a group that wait behind a dead letter."""
    prefix = f"{group}{_SEPARATOR}"
    found: set[str] = set()
    after: str | None = None
    async with storage.transaction() as transaction:
        while rows := await transaction.scan(PARKED, prefix=prefix, after=after):
            found |= {key.removeprefix(prefix) for key, _ in rows}
            after = rows[-1][0]
    return found


async def dead_letters(storage: Storage, group: str, *, limit: int = 1000) -> list[dict[str, Any]]:
    """A group's dead letters, by aggregate and position."""
    async with storage.transaction() as transaction:
        rows = await transaction.scan(DEAD_LETTERS, prefix=f"{group}{_SEPARATOR}", limit=limit)
    return [row for _, row in rows]
