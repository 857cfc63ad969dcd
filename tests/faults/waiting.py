"""Wait for what comes without a signal, for a bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from eventsourcing import UnavailableError

BOUND_S = 60.0

Answer = TypeVar("Answer")


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Return once the condition holds; TimeoutError when it does not come to hold."""
    async with asyncio.timeout(BOUND_S):
        while True:
            if await holds():
                return
            await asyncio.sleep(0.01)


async def once_available(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """The answer of a call, made again while the store is unavailable."""
    async with asyncio.timeout(BOUND_S):
        while True:
            try:
                return await call()
            except UnavailableError:
                await asyncio.sleep(0.01)


async def forever(call: Callable[[], Awaitable[object]]) -> None:
    """Call again and again, until it raises."""
    while True:
        await call()
