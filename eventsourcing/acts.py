"""What a request has done so far, kept with what it changed: sent again after its server died, it finds that.

A token names a request. What the request came to is written in the transaction that changes something, so
there are both or neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from eventsourcing.storage.base import StateTable, StateTransaction

ACTS = StateTable("acts")
"""Key: the token of a request, and the part. Value: what it came to."""

_KEPT_S = 86_400.0


async def remember(
    transaction: StateTransaction, token: UUID | None, facts: Mapping[str, Any], *, part: str = ""
) -> None:
    """Keep what a request came to, in the caller's transaction, for a day; the last time holds. Without a
    token nothing is kept."""
    if token is not None:
        await transaction.put(ACTS, token.hex + part, dict(facts))
        await transaction.purge(ACTS, older_than_s=_KEPT_S, limit=100)


async def recall(
    transaction: StateTransaction, token: UUID | None, *, part: str = ""
) -> dict[str, Any] | None:
    """What a request came to; None when it has changed nothing yet."""
    return None if token is None else await transaction.get(ACTS, token.hex + part)
