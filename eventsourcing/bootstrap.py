"""The composition root: from settings to wired objects, the same in every process."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from eventsourcing.bus import EventBus
from eventsourcing.config import Settings
from eventsourcing.plugins import load_plugins
from eventsourcing.store import EventStore, database_storage


@dataclass(frozen=True, slots=True)
class System:
    """The library, wired: the store is open, the bus is not started."""

    settings: Settings
    store: EventStore
    bus: EventBus


def collect_rarely() -> None:
    """Let Python's collector of cycles look rarely, in a process of ours.

    Events come and go by the thousand and form no cycles; looking through them after every 700 new
    objects took half the time of a replay. What stands at the start is not looked at again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def return_buffers() -> None:
    """Let what one thread frees be used by the next, and go back to the system when it is much.

    glibc gives each thread a heap of its own, which keeps what the thread leaves behind: frames that come
    and go in threads doubled the memory of a migration. Given back at once, as blocks of a megabyte or more
    can be, each page is cleared anew for the next frame: a tenth of the time of a migration.
    """
    with suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL(None)
        for option, value in _MALLOC.items():
            library.mallopt(option, value)


_MALLOC = {-8: 2, -3: 32 << 20, -1: 64 << 20}
"""M_ARENA_MAX, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h: two heaps, so that a thread that holds one
does not hold up all others."""


@asynccontextmanager
async def open_system(settings: Settings | None = None) -> AsyncIterator[System]:
    """Load the plugins, open the store, and wire a bus to it; close both at the end.

    Raises ConfigurationError, SchemaError or UnavailableError; then nothing is left open.
    """
    settings = settings or Settings.load()
    load_plugins(settings)
    collect_rarely()
    return_buffers()
    storage = database_storage(settings.store_config(), settings.data_dir)
    async with EventStore(storage=storage) as store:
        bus = EventBus(settings.bus_config(), store=store)
        try:
            yield System(settings, store, bus)
        finally:
            await bus.stop()
