"""How often a caller may call, and how much at once: a bucket of tokens and seats for each, in this process.

A bucket holds a burst and fills at a rate. There are at most 10,000; when there are more, the full ones go
first, for they remember nothing, and then the others: a limit forgotten is generous, memory is not.

A seat is held from the gate until the answer has left, so that waiting, slow reading and open streams count.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from eventsourcing import UnavailableError

MAX_BUCKETS = 10_000

SEAT = "esm.seat"
"""Where a request's scope holds what gives its seat back."""


class RateLimit:
    """At most `rate` calls a second and `burst` at once for each name; a rate of 0 allows everything."""

    def __init__(self, rate: float, burst: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait_s(self, name: str) -> float:
        """Take a token and return 0, or return in how many seconds there is one."""
        if not self._rate:
            return 0.0
        now = self._clock()
        tokens, at = self._buckets.get(name, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) * self._rate)
        if tokens < 1:
            return (1 - tokens) / self._rate
        if len(self._buckets) >= MAX_BUCKETS and name not in self._buckets:
            self._make_room(now)
        self._buckets[name] = (tokens - 1, now)
        return 0.0

    def _make_room(self, now: float) -> None:
        full_after = self._burst / self._rate
        self._buckets = {name: held for name, held in self._buckets.items() if now - held[1] < full_after}
        if len(self._buckets) >= MAX_BUCKETS:
            self._buckets.clear()


class Seats:
    """At most `count` requests of each name at a time; 0: any number."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._taken: dict[str, int] = {}

    def take(self, name: str) -> bool:
        """Take a seat for a name, if it has one left."""
        taken = self._taken.get(name, 0)
        if self._count and taken >= self._count:
            return False
        self._taken[name] = taken + 1
        return True

    def give_back(self, name: str) -> None:
        """Let another request of the name have the seat."""
        left = self._taken[name] - 1
        if left:
            self._taken[name] = left
        else:
            del self._taken[name]


class Turns:
    """At most `count` at a time of work that may take long; the others wait, in order."""

    def __init__(self, count: int, *, wait_s: float = 5.0) -> None:
        self._free, self._wait_s = asyncio.Semaphore(count), wait_s

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Do the work of the block when it is its turn. Raises UnavailableError when that takes too long;
        then nothing was begun."""
        try:
            async with asyncio.timeout(self._wait_s):
                await self._free.acquire()
        except TimeoutError as error:
            raise UnavailableError(f"{self._wait_s:g} s were not enough to get a turn") from error
        try:
            yield
        finally:
            self._free.release()
