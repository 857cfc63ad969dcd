"""The port through which services start Dagster runs, and which implementation a service gets.

Nothing here loads Dagster: a service is ready before that, and most requests never need it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

from eventsourcing.config import Settings

log = logging.getLogger("esm.api.launcher")


class LaunchError(Exception):
    """A run cannot be started as asked: no such job, or a configuration that it does not take. One line."""


class NotReadyError(LaunchError):
    """No run can be started as things stand. Its text may be read by everybody."""


REQUEST = "esm/request"
"""The tag that names the request for which a run was made; it stands at one run at most."""


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

    async def find(self, request: str) -> str | None:
        """The run that was made for this request, or None."""

    async def wait(self, run_id: str, timeout_s: float) -> bool | None:
        """True when the run ended well, False when it did not, None while it runs and for no such run."""

    async def cancel(self, run_id: str) -> None:
        """Ask a run to end. A run that has ended, or is not known, is left as it is."""

    async def check(self) -> None:
        """Mend what can be mended. Raises whatever keeps a run from being executed now."""


def make_launcher(settings: Settings) -> Launcher:
    """The launcher of a service, which does nothing until it is started. Loads Dagster: half a second of
    work."""
    if settings.launcher == "queue":
        from api.queue_launcher import QueueLauncher

        return QueueLauncher(settings)
    from api.embedded_launcher import EmbeddedLauncher

    return EmbeddedLauncher(settings)


CHECK_S = 5.0
"""How often a launcher is looked after."""


class StartedOnDemand:
    """A launcher that is made and started once, when it is first needed or ahead of that.

    States: unknown → idle ⇄ down, and once it is needed starting → up ⇄ down. A start that fails leaves
    nothing. Every five seconds it is looked after, so that `report` says how it is and nobody has to restart
    the service: before it is needed `ready` is asked whether it could start, from then on what failed to
    start is tried again, and what started is checked. `then` is a part of the start.
    """

    def __init__(
        self,
        make: Callable[[], Launcher],
        *,
        ready: Callable[[], Awaitable[None]] | None = None,
        then: Callable[[Launcher], Awaitable[None]] | None = None,
    ) -> None:
        self._make, self._ready, self._then = make, ready, then
        self._lock, self._is_needed, self._is_known = asyncio.Lock(), False, ready is None
        self._launcher: Launcher | None = None
        self._care: asyncio.Task[None] | None = None
        self._fault: Exception | None = None

    def start_ahead(self) -> None:
        """Begin to start in the background; whoever needs the launcher meanwhile waits for that."""
        self._is_needed = True
        self._look_after()

    def look_ahead(self) -> None:
        """Begin to ask in the background whether it could start."""
        if self._ready is not None:
            self._look_after()

    async def started(self) -> Launcher:
        """The launcher, started. Raises what keeps it from starting; at once while it is known to be down."""
        self._is_needed = True
        is_partial = self._launcher is not None and isinstance(self._fault, LaunchError)
        if self._fault is not None and not is_partial:  # a webserver that is away hinders long jobs alone
            raise LaunchError(f"no launcher: {type(self._fault).__name__}") from self._fault
        try:
            launcher = await self._started()
        except Exception as error:
            self._found(error)
            raise
        finally:
            self._look_after(CHECK_S)
        return launcher

    def report(self) -> dict[str, str]:
        """How it is: its status and, when it is down, why. The log says more: everybody may read this."""
        if self._fault is not None:
            what = "does not start" if self._launcher is None else "cannot execute"
            told = str(self._fault) if isinstance(self._fault, NotReadyError) else type(self._fault).__name__
            return {"status": "down", "reason": f"the launcher {what}: {told}"}
        if self._launcher is not None:
            return {"status": "up"}
        if self._is_needed:
            return {"status": "starting"}
        return {"status": "idle" if self._is_known else "unknown"}

    async def stop(self) -> None:
        """Stop what was started, and give up what is starting."""
        if self._care is not None:
            self._care.cancel()
            await asyncio.gather(self._care, return_exceptions=True)
        if self._launcher is not None:
            await self._launcher.stop()

    async def _started(self) -> Launcher:
        async with self._lock:
            if self._launcher is None:
                launcher = await asyncio.to_thread(self._make)
                try:
                    await launcher.start()
                    if self._then is not None:
                        await self._then(launcher)
                except BaseException:
                    with suppress(Exception):  # the first error is the one to tell
                        await launcher.stop()
                    raise
                self._launcher = launcher
                self._found(None)
        return self._launcher

    def _look_after(self, wait_s: float = 0.0) -> None:
        if self._care is None:
            self._care = asyncio.create_task(self._go_on_caring(wait_s), name="look after the launcher")

    async def _go_on_caring(self, wait_s: float) -> None:
        while True:
            await asyncio.sleep(wait_s)
            wait_s = CHECK_S
            try:
                if self._is_needed or self._ready is None:
                    launcher = await self._started()
                    await launcher.check()
                else:
                    await self._ready()
            except Exception as error:  # noqa: BLE001 - a supervising loop, which tells of it
                self._found(error)
            else:
                self._found(None)

    def _found(self, fault: Exception | None) -> None:
        """Remember what is wrong, and say so when it is another thing than before."""
        self._is_known = True
        before, self._fault = self._fault, fault
        if fault is not None and (type(before), str(before)) != (type(fault), str(fault)):
            log.error("no job can be started", exc_info=fault)
        elif fault is None and before is not None:
            log.info("jobs can be started again")
