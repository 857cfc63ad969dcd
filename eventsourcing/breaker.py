"""Circuit breakers: while what a consumer group needs is away, nobody calls it but one trial at a time.

Closed (calls go through) → open (after several outages in a row: nobody calls) → half-open (the pause is
over: one call tries) → closed again, or open for another pause. Only outages count; a handler that fails
on an event has reached whatever it needs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal, Protocol
from weakref import WeakSet

from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import OpenedState
from purgatory.service._async.circuitbreaker import AsyncCircuitBreaker

from eventsourcing.errors import UnavailableError
from eventsourcing.failures import is_outage
from eventsourcing.metrics import gauge

THRESHOLD = 5
"""How many outages in a row open the circuit."""

BreakerState = Literal["closed", "open", "half-open"]

_STATES: dict[str, BreakerState] = {"closed": "closed", "opened": "open", "half-opened": "half-open"}


class Breaker(Protocol):
    """Keeps calls from something that is away."""

    @property
    def state(self) -> BreakerState:
        """Whether calls go through."""

    async def wait(self) -> None:
        """Return once a call may go through, at once while the circuit is closed."""

    async def call(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do the work and learn from how it ends. Raises UnavailableError, the work undone, while the
        circuit is open, else what the work raises."""


class CircuitBreaker:
    """A breaker of this process. `pause_s` is how long an open circuit stays open."""

    def __init__(
        self, name: str, *, pause_s: float, on_change: Callable[[BreakerState], None] | None = None
    ) -> None:
        self.name, self._pause_s, self._on_change = name, pause_s, on_change
        self._factory = AsyncCircuitBreakerFactory(
            default_threshold=THRESHOLD,
            default_ttl=pause_s,
            exclude=[(BaseException, lambda error: not is_outage(error))],
        )
        self._inner: AsyncCircuitBreaker | None = None
        self._told: BreakerState = "closed"
        self._trial = asyncio.Lock()
        _breakers.add(self)

    @property
    def state(self) -> BreakerState:
        """See Breaker.state."""
        return "closed" if self._inner is None else _STATES[self._inner.context.state]

    async def wait(self) -> None:
        """See Breaker.wait."""
        while (left := self._left_s()) > 0:  # noqa: ASYNC110 - the end of the pause is a moment, not an event
            await asyncio.sleep(left)

    async def call(self, work: Callable[[], Awaitable[None]]) -> None:
        """See Breaker.call. A success teaches a closed circuit without failures nothing: it costs nothing."""
        if self._untroubled():
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - it is raised again, once the circuit knows
                await self._pass(partial(_fail_with, error))
            return
        if self._closed():
            await self._pass(work)
            return
        async with self._trial:
            closed = self._closed()  # whoever tried before us may have closed it
            if not closed:
                await self._pass(work)
        if closed:
            await self._pass(work)

    def _untroubled(self) -> bool:
        return self._inner is None or (self._closed() and not self._inner.context.failure_count)

    def _closed(self) -> bool:
        return self.state == "closed"

    def _left_s(self) -> float:
        """How long the circuit stays open; a clock set back cannot prolong it beyond one pause."""
        opened_at = self._inner.context.opened_at if self._inner is not None else None
        if opened_at is None or self.state != "open":
            return 0.0
        return min(opened_at + self._pause_s - time.time(), self._pause_s)

    async def _pass(self, work: Callable[[], Awaitable[None]]) -> None:
        if self._inner is None:
            self._inner = await self._factory.get_breaker(self.name)
        try:
            async with self._inner:
                self._tell()
                await work()
        except OpenedState:
            raise UnavailableError(f"{self.name} is paused: what it needs is away") from None
        finally:
            self._tell()

    def _tell(self) -> None:
        if self.state != self._told:
            self._told = self.state
            if self._on_change is not None:
                self._on_change(self._told)


async def _fail_with(error: Exception) -> None:
    raise error


_ORDER: list[BreakerState] = ["closed", "half-open", "open"]

_breakers: WeakSet[CircuitBreaker] = WeakSet()


def breaker_states() -> dict[str, BreakerState]:
    """The states of this process's breakers by name, for metrics; the worst one where a name has several."""
    worst: dict[str, BreakerState] = {}
    for breaker in list(_breakers):
        worst[breaker.name] = max(worst.get(breaker.name, "closed"), breaker.state, key=_ORDER.index)
    return worst


def _circuits() -> dict[tuple[str, ...], float]:
    return {(name,): float(_ORDER.index(state)) for name, state in breaker_states().items()}


gauge("es_circuit_state", "Circuits: 0 closed, 1 half-open, 2 open.", _circuits, ("dependency",))
