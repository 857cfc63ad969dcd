"""Watch: what a long op says while it runs, and how it hears that it should stop.

Terminate in Dagster's UI does no more to an embedded run than set it to CANCELING, so loops ask. Both
directions cost a database call and happen at most twice a second.
"""

from __future__ import annotations

import time

import dagster as dg

INTERVAL_S = 0.5


class Watch:
    """The progress and the end of one op."""

    def __init__(self, context: dg.OpExecutionContext) -> None:
        self._context = context
        self._said = self._asked = 0.0
        self._stopping = False

    def say(self, message: str) -> None:
        """Write progress into the run's log, unless the last line is less than half a second old."""
        now = time.monotonic()
        if now - self._said >= INTERVAL_S:
            self._said = now
            self._context.log.info(message)

    def stopping(self) -> bool:
        """Whether somebody asked the run to end; known half a second later at most."""
        now = time.monotonic()
        if not self._stopping and now - self._asked >= INTERVAL_S:
            self._asked = now
            run = self._context.instance.get_run_by_id(self._context.run_id)
            self._stopping = run is not None and run.status is dg.DagsterRunStatus.CANCELING
        return self._stopping

    def check(self) -> None:
        """Raise the failure that ends a run which is to be cancelled."""
        if self.stopping():
            raise dg.Failure("cancelled", allow_retries=False)
