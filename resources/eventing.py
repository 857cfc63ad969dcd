"""EventingResource: the event store and the bus of a run, opened together and closed with the run.

Store and bus are one resource: Dagster would set up a nested store twice, and the two would split.
The settings come from the environment of the process, never from a run's configuration, so no caller
can point a job at another database.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import dagster as dg
from pydantic import PrivateAttr

from eventsourcing.bootstrap import System
from eventsourcing.bus import EventBus
from eventsourcing.config import Settings
from eventsourcing.logs import run_of
from eventsourcing.store import EventStore
from resources.kept_system import system_of_run


class EventingResource(dg.ConfigurableResource):  # type: ignore[type-arg]  # its value is itself
    """The wired event system, while a run uses it."""

    _system: System = PrivateAttr()

    @asynccontextmanager
    async def yield_for_execution(  # type: ignore[override]  # Dagster takes an async one, untyped
        self,
        context: dg.InitResourceContext,
    ) -> AsyncIterator[EventingResource]:
        """Have the system on the event loop of the run; one that is not kept closes, whatever happens."""
        with run_of(context.run.run_id if context.run else ""):
            async with system_of_run() as system:
                self._system = system
                yield self

    @property
    def settings(self) -> Settings:
        """What the system was opened with."""
        return self._system.settings

    @property
    def store(self) -> EventStore:
        """The event store, initialised."""
        return self._system.store

    @property
    def bus(self) -> EventBus:
        """The bus, not started."""
        return self._system.bus
