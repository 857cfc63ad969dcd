"""Wait for what must happen in a store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a condition that asks the store holds."""
    async with asyncio.timeout(100):
        while not await condition():  # noqa: ASYNC110 - any condition, not one event
            await asyncio.sleep(0.02)
