"""The audit: one entry an action of an operator, with who, when, what and why; and who reached what.

An action's entry is written before it begins, and what came of it is added at its end; an entry without an
outcome belongs to an action whose process died. An access is written after it, together with its like:
`count` says how many. Rows are only added, which the storage enforces, and go when they are past their time.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from eventsourcing.errors import InvalidEventError
from eventsourcing.events import new_event_id
from eventsourcing.storage.base import APPEND_ONLY_KEPT, StateStorage, StateTable, StateTransaction

AUDIT = StateTable("audit", append_only=True)
"""Key: a time-ordered id. Value: {id, at, by, action, what, why, outcome}, and of an access its count.
Behind an entry, under its id and one of its own, stands each {outcome} that was added; the last one holds."""

_ADDED = ":"
_KEPT_AT_LEAST = APPEND_ONLY_KEPT + timedelta(days=1)
"""An outcome is younger than its entry, but for a day at most: no action takes longer."""

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
    await transaction.add(AUDIT, entry_id, entry)
    return entry_id


async def complete(transaction: StateTransaction, entry_id: str, outcome: Any) -> None:
    """Say what came of an action, or came of it so far; the last time holds."""
    await transaction.add(AUDIT, f"{entry_id}{_ADDED}{new_event_id()}", {"outcome": outcome})


async def add_accesses(transaction: StateTransaction, accesses: Iterable[dict[str, Any]]) -> None:
    """Write entries of accesses: {at, by, action, what, outcome, count} each."""
    entries = {str(new_event_id()): {"why": None, **access} for access in accesses}
    await transaction.put_many(AUDIT, {key: {"id": key, **entry} for key, entry in entries.items()})


async def audit_entries(
    storage: StateStorage, *, limit: int = 100, before: str | None = None
) -> list[dict[str, Any]]:
    """The last entries, newest first; those before an id."""
    entries: list[dict[str, Any]] = []
    outcomes: dict[str, Any] = {}
    async with storage.transaction() as transaction:
        while len(entries) < limit:
            rows = await transaction.scan(AUDIT, after=before, limit=limit, backwards=True)
            for key, row in rows:  # going back, an entry comes behind all that was added to it
                before, (entry_id, added, _) = key, key.partition(_ADDED)
                if added:
                    outcomes.setdefault(entry_id, row["outcome"])
                elif len(entries) < limit:
                    entries.append({**row, "outcome": outcomes.pop(entry_id, row["outcome"])})
            if len(rows) < limit:
                break
    return entries


def first_id_of(moment: datetime) -> str:
    """What sorts before the ids of all entries from this moment on."""
    return str(UUID(int=max(int(moment.timestamp() * 1000), 0) << 80))


async def purge_audit(storage: StateStorage, *, older_than: timedelta) -> int:
    """Remove rows past their time, but none of the last 29 days; oldest first, in short transactions.
    Return how many."""
    end, gone = first_id_of(datetime.now(UTC) - max(older_than, _KEPT_AT_LEAST)), 0
    while True:
        async with storage.transaction() as transaction:
            rows = await transaction.scan(AUDIT, limit=_PURGED_AT_ONCE)
            old = [key for key, _ in rows if key < end]
            await transaction.delete_many(AUDIT, old)
        gone += len(old)
        if len(old) < _PURGED_AT_ONCE:
            return gone
