"""Wait for what comes without a signal, for a bounded time: long enough for a machine that is loaded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from eventsourcing import UnavailableError

BOUND_S = 100.0
"""Below pytest's own bound, so that a test that waits in vain says for what."""

_STEP_S = 0.01

Answer = TypeVar("Answer")


async def until(
    holds: Callable[[], Awaitable[bool]] | Callable[[], bool], *, within_s: float = BOUND_S
) -> None:
    """Return once the condition holds; TimeoutError when it does not come to hold."""
    async with asyncio.timeout(within_s):
        while True:
            held = holds()
            if held if isinstance(held, bool) else await held:
                return
            await asyncio.sleep(_STEP_S)


def blocked_until(holds: Callable[[], bool], *, within_s: float = BOUND_S) -> None:
    """The same where no loop runs."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(_STEP_S)


async def once_available(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """The answer of a call, made again while the store is unavailable."""
    async with asyncio.timeout(BOUND_S):
        while True:
            try:
                return await call()
            except UnavailableError:
                await asyncio.sleep(_STEP_S)


async def forever(call: Callable[[], Awaitable[object]]) -> None:
    """Call again and again, until it raises."""
    while True:
        await call()
