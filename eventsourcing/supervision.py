"""Work that must go on: started again after every fault, and done by one process at a time.

A fault is logged and waited out, exponentially with full jitter; whoever worked for a minute before it
begins with the shortest wait again. Cancelling ends it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from eventsourcing.delivery import backoff
from eventsourcing.logs import spoken
from eventsourcing.storage.base import StateStorage

_log = logging.getLogger(__name__)

STAND_BY_S = 1.0
STEADY_S = 60.0

Work = Callable[[], Awaitable[None]]


async def supervise(name: str, work: Work) -> None:
    """Do the work again and again, whatever it raises, until cancelled."""
    failures = 0
    while True:
        began = time.monotonic()
        try:
            await work()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - the one supervising loop of relay, consumers and read models
            failures = 1 if time.monotonic() - began > STEADY_S else failures + 1
            _log.warning("%s paused: %s", name, spoken(error))
            await asyncio.sleep(backoff(min(failures, 6), 1.0))


async def lead(storage: StateStorage, name: str, work: Work) -> None:
    """Supervise the work while the lease of its name is ours, else stand by for it, until cancelled."""

    async def term() -> None:
        async with storage.lease(name) as ours:
            if ours:
                await work()
        await asyncio.sleep(STAND_BY_S)

    await supervise(name, term)
