"""A system that stays open between the runs of a process: to open it costs as much as a short run.

Dagster makes an event loop for each run and closes it. In a process that keeps its system the runs share one
loop, one after the other, and the connections on it. After a run that did not succeed both are given up:
an interrupted one may have left anything behind, and the next begins with new ones.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from eventsourcing.bootstrap import System, open_system
from eventsourcing.config import Settings
from eventsourcing.errors import EventSourcingError

log = logging.getLogger("esm.kept-system")

_CLOSE_S = 5.0


class KeptLoop(asyncio.SelectorEventLoop):
    """An event loop that outlives the runs on it, until `end`."""

    def __init__(self) -> None:
        super().__init__()
        self.system: System | None = None
        self.opened = AsyncExitStack()

    async def opened_system(self) -> System:
        """The system on this loop, opened on first use."""
        if self.system is None:
            self.system = await self.opened.enter_async_context(open_system(Settings.load()))
        return self.system

    def close(self) -> None:
        """Stay open: what ends is a run."""

    async def shutdown_asyncgens(self) -> None:
        """Stay usable for the generators of the next run."""

    def end(self) -> None:
        """Cancel what is left, close the system, and then the loop."""
        try:
            self.run_until_complete(asyncio.wait_for(self._leave(asyncio.all_tasks(self)), timeout=_CLOSE_S))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, nobody uses it again
            log.warning("a kept system did not close in order: %s", type(error).__name__)
        super().close()

    async def _leave(self, left: set[asyncio.Task[Any]]) -> None:
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self.opened.aclose()


class _SharedLoop(asyncio.DefaultEventLoopPolicy):
    """Gives the main thread one loop again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: KeptLoop | None = None

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        if threading.current_thread() is not threading.main_thread():
            return super().new_event_loop()
        if self.kept is None:
            self.kept = KeptLoop()
        return super().new_event_loop() if self.kept.is_running() else self.kept


def keep_open() -> None:
    """Let the runs of this process share one loop and one system from now on."""
    asyncio.set_event_loop_policy(_SharedLoop())


def open_ahead() -> None:
    """Open the system that is kept, if one is to be, before the first run, whose failure a failure is."""
    loop = asyncio.new_event_loop()
    if isinstance(loop, KeptLoop):
        with suppress(EventSourcingError):
            loop.run_until_complete(loop.opened_system())
    else:
        loop.close()


def give_up() -> None:
    """Close what is kept, if anything is; the next run opens it anew."""
    policy = asyncio.get_event_loop_policy()
    if isinstance(policy, _SharedLoop) and policy.kept is not None:
        kept, policy.kept = policy.kept, None
        kept.end()


@asynccontextmanager
async def system_of_run() -> AsyncIterator[System]:
    """The system for one run: the kept one, or one that closes with the run."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, KeptLoop):
        async with open_system(Settings.load()) as system:
            yield system
        return
    yield await loop.opened_system()
