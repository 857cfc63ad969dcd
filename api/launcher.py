"""The port through which services start Dagster runs, and which implementation a service gets.

Nothing here loads Dagster: a service is ready before that, and most requests never need it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from eventsourcing.config import Settings

log = logging.getLogger("esm.api.launcher")


class LaunchError(Exception):
    """A run cannot be started as asked: no such job, or a configuration that it does not take. One line."""


class Launcher(Protocol):
    """Starts runs and follows them."""

    async def start(self) -> None:
        """Open the Dagster instance and warm the lanes."""

    async def stop(self) -> None:
        """End the lanes; a run that is not finished is cancelled."""

    async def submit(self, job_name: str, run_config: dict[str, Any], tags: dict[str, str]) -> str:
        """Create a run, let it begin as soon as a lane is free, and return its id.

        Raises LaunchError; then there is no run.
        """

    async def wait(self, run_id: str, timeout_s: float) -> bool | None:
        """True when the run ended well, False when it did not, None while it runs and for no such run."""

    async def cancel(self, run_id: str) -> None:
        """Ask a run to end. A run that has ended, or is not known, is left as it is."""


def make_launcher(settings: Settings) -> Launcher:
    """The launcher of a service, which does nothing until it is started. Loads Dagster: half a second of
    work."""
    if settings.launcher == "queue":
        from api.queue_launcher import QueueLauncher

        return QueueLauncher(settings)
    from api.embedded_launcher import EmbeddedLauncher

    return EmbeddedLauncher(settings)


class StartedOnDemand:
    """A launcher that is made and started once, when it is first needed or ahead of that.

    States: nothing → started; a start that fails leaves nothing, and the next call tries again. `then` is
    a part of the start.
    """

    def __init__(
        self, make: Callable[[], Launcher], *, then: Callable[[Launcher], Awaitable[None]] | None = None
    ) -> None:
        self._make, self._then, self._lock = make, then, asyncio.Lock()
        self._launcher: Launcher | None = None
        self._is_started = False
        self._ahead: asyncio.Task[None] | None = None

    def start_ahead(self) -> None:
        """Begin to start in the background; whoever needs the launcher meanwhile waits for that."""
        self._ahead = asyncio.create_task(self._start_ahead(), name="start the launcher")

    async def started(self) -> Launcher:
        """The launcher, started. Raises whatever keeps it from starting."""
        async with self._lock:
            if self._launcher is None:
                self._launcher = await asyncio.to_thread(self._make)
            if not self._is_started:
                await self._launcher.start()
                if self._then is not None:
                    await self._then(self._launcher)
                self._is_started = True
        return self._launcher

    async def stop(self) -> None:
        """Stop what was started, and give up what is starting."""
        if self._ahead is not None:
            self._ahead.cancel()
            await asyncio.gather(self._ahead, return_exceptions=True)
        if self._launcher is not None:
            await self._launcher.stop()

    async def _start_ahead(self) -> None:
        try:
            await self.started()
        except Exception:
            log.exception("no job can be started")
