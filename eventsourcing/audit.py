"""The audit: one entry an action of an operator, with who, when, what and why; and who reached what.

An action's entry is written before it begins and completed at its end; one without an outcome belongs to
an action whose process died. An access is written after it, together with its like: `count` says how many.
Entries are added and completed, never changed otherwise, and go when they are past their time.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from eventsourcing.errors import InvalidEventError
from eventsourcing.events import new_event_id
from eventsourcing.storage.base import StateStorage, StateTable, StateTransaction

AUDIT = StateTable("audit")
"""Key: a time-ordered id. Value: {id, at, by, action, what, why, outcome}, and of an access its count."""

_PURGED_AT_ONCE = 1000


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


async def add_accesses(transaction: StateTransaction, accesses: Iterable[dict[str, Any]]) -> None:
    """Write entries of accesses: {at, by, action, what, outcome, count} each."""
    entries = {str(new_event_id()): {"why": None, **access} for access in accesses}
    await transaction.put_many(AUDIT, {key: {"id": key, **entry} for key, entry in entries.items()})


async def audit_entries(
    storage: StateStorage, *, limit: int = 100, before: str | None = None
) -> list[dict[str, Any]]:
    """The last entries, newest first; those before an id."""
    async with storage.transaction() as transaction:
        rows = await transaction.scan(AUDIT, after=before, limit=limit, backwards=True)
    return [entry for _, entry in rows]


def first_id_of(moment: datetime) -> str:
    """What sorts before the ids of all entries from this moment on."""
    return str(UUID(int=max(int(moment.timestamp() * 1000), 0) << 80))


async def purge_audit(storage: StateStorage, *, older_than: timedelta) -> int:
    """Remove entries past their time, oldest first, in short transactions; return how many."""
    end, gone = first_id_of(datetime.now(UTC) - older_than), 0
    while True:
        async with storage.transaction() as transaction:
            rows = await transaction.scan(AUDIT, limit=_PURGED_AT_ONCE)
            old = [key for key, _ in rows if key < end]
            await transaction.delete_many(AUDIT, old)
        gone += len(old)
        if len(old) < _PURGED_AT_ONCE:
            return gone
