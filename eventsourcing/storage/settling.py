"""An append whose answer was lost is settled by its event ids: repeat it until the outcome is known.

Repeating is safe at any moment. Where the first attempt was stored, its ids are found and come back as
stored; where it is still on its way, the unique index on event_id makes the next attempt wait for its end.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from eventsourcing.errors import UnavailableError

_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.02, 1.0

Answer = TypeVar("Answer")


async def settled(attempt: Callable[[], Awaitable[Answer]], *, within_s: float, lost: bool = False) -> Answer:
    """The answer of an append; it is attempted again only when a connection was lost with the answer.
    `lost` says that this happened to an attempt before.

    Raises what the attempt raises. When no server gives an answer within `within_s` of the loss, raises
    UnavailableError with `outcome_unknown`.
    """
    lost_at, pause = time.monotonic() if lost else None, _FIRST_PAUSE_S
    while True:
        try:
            return await attempt()
        except UnavailableError as error:
            if lost_at is None:
                if not error.outcome_unknown:
                    raise
                lost_at = time.monotonic()
            if time.monotonic() - lost_at + pause > within_s:
                raise UnavailableError(
                    f"{error}; the connection was lost while appending, and whether the events are stored is "
                    "unknown: append them again with the same event ids, and nothing is stored twice",
                    outcome_unknown=True,
                ) from error
        await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - spreads writers
        pause = min(pause * 2, _LAST_PAUSE_S)
