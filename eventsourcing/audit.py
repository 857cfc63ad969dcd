"""The audit of what operators do: one entry an action, with who, when, what and why.

An entry is written before the action begins and completed at its end; one without an outcome belongs to
an action whose process died.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from eventsourcing.errors import InvalidEventError
from eventsourcing.events import new_event_id
from eventsourcing.storage.base import StateStorage, StateTable, StateTransaction

AUDIT = StateTable("audit")
"""Key: a time-ordered id. Value: {id, at, by, action, what, why, outcome}."""


async def begin(transaction: StateTransaction, action: str, *, by: str, what: Any, why: str) -> str:
    """Write the entry of an action, in the caller's transaction; return its id.

    Raises InvalidEventError when nobody or no reason is named.
    """
    for name, given in (("by", by), ("why", why)):
        if not given.strip():
            raise InvalidEventError("must be said: it stands in the audit", field=name)
    entry_id = str(new_event_id())
    entry = {
        "id": entry_id,
        "at": datetime.now(UTC),
        "by": by,
        "action": action,
        "what": what,
        "why": why,
        "outcome": None,
    }
    await transaction.put(AUDIT, entry_id, entry)
    return entry_id


async def complete(transaction: StateTransaction, entry_id: str, outcome: Any) -> None:
    """Add what came of an action to its entry."""
    entry = await transaction.get(AUDIT, entry_id, lock=True)
    await transaction.put(AUDIT, entry_id, {**(entry or {}), "outcome": outcome})


async def audit_entries(storage: StateStorage, *, limit: int = 100) -> list[dict[str, Any]]:
    """The last entries, newest first."""
    async with storage.transaction() as transaction:
        return [entry for _, entry in await transaction.scan(AUDIT, limit=limit, backwards=True)]
