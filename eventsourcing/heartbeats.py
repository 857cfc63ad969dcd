"""Heartbeats: a durable row says that its process lives, for as long as its work goes on.

Whoever reads a row of unfinished work whose heartbeat is older than `STALE_AFTER` takes its process for
dead; nobody has to notice in time. A process that was only stopped learns of it at its next write, which
names its owner.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

BEAT_S = 3.0
STALE_AFTER = timedelta(seconds=15)


@asynccontextmanager
async def beating(name: str, beat: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Call `beat` every three seconds, however long the body takes. Its first error ends the body."""

    async def go_on() -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            await beat()

    try:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(go_on(), name=f"heartbeat of {name}")
            try:
                yield
            finally:
                task.cancel()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def is_stale(beat: object, after: timedelta | None = None) -> bool:
    """Whether a heartbeat, as it was written, is older than `after`; by default, too old for its process to
    live. None was never written."""
    age = None if beat is None else datetime.now(UTC) - datetime.fromisoformat(str(beat))
    return age is not None and age > (after or STALE_AFTER)
