"""Leases on PostgreSQL: an advisory lock of a session of its own, kept by a heartbeat.

The lock dies with the session, and the server ends a session that is silent for `SILENCE_S`: so a process
that was stopped or cut off loses its leases, though its connection looks open. A holder that cannot
reach the server is told: what it does under the lease ends with UnavailableError.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import asyncpg

from eventsourcing.storage.postgres_errors import DRIVER, translated
from eventsourcing.storage.postgres_pool import CONNECT_TIMEOUT_S
from eventsourcing.storage.statements import statements

BEAT_S = 5.0
SILENCE_S = 30.0

_STATES = statements("states")


@asynccontextmanager
async def hold(url: str, name: str) -> AsyncIterator[bool]:
    """See StateStorage.lease. Letting go waits for the server, so that the next holder finds it free."""
    with translated(sent=False):
        connection = await asyncpg.connect(
            url,
            timeout=CONNECT_TIMEOUT_S,
            server_settings={"idle_session_timeout": str(int(SILENCE_S * 1000))},
        )
    try:
        with translated():
            ours = bool(await connection.fetchval(_STATES["try_lease"], name))
        if ours:
            async with _kept(connection):
                yield True
        else:
            yield False
    finally:
        with suppress(*DRIVER):
            await connection.execute(_STATES["release_lease"], name, timeout=5)
        connection.terminate()


@asynccontextmanager
async def _kept(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """End the body when a heartbeat fails."""
    try:
        async with asyncio.TaskGroup() as tasks:
            beating = tasks.create_task(_beat(connection, BEAT_S))
            try:
                yield
            finally:
                beating.cancel()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


async def _beat(connection: asyncpg.Connection, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        with translated():
            await connection.execute(_STATES["beat"], timeout=BEAT_S)
