"""Hand an event to a handler, and again when it fails: bounded, exponential with full jitter.

An error that trying again cannot help is given up at once. An outage spends no event: it goes through
the group's circuit breaker, and is waited out or reported, whatever the transport can do.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from eventsourcing.breaker import Breaker
from eventsourcing.config import EventBusConfig
from eventsourcing.errors import HandlerError, HandlerTimeoutError, UnavailableError
from eventsourcing.events import BaseEvent
from eventsourcing.failures import is_outage, is_permanent
from eventsourcing.handlers import EventHandler
from eventsourcing.logs import about
from eventsourcing.metrics import instruments
from eventsourcing.secrets import redact, secret_values

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram

__all__ = ["CONCURRENT_CALLS", "Delivery", "backoff", "call_with_retry", "is_outage"]

MAX_DELAY_S = 30.0

CONCURRENT_CALLS = 16
"""How many handlers of one group run at a time; whoever waits for its next attempt takes no place."""


async def call_with_retry(handler: EventHandler, event: BaseEvent, *, retries: int, delay_s: float) -> int:
    """Let the handler take the event; return the number of attempts.

    Waits a random time up to `delay_s` doubled with each attempt. Raises HandlerError, its cause
    chained, when the attempts are spent or cannot help.
    """
    return await _retried(handler, event, lambda: handler.handle(event), retries=retries, delay_s=delay_s)


@dataclass(slots=True)
class Delivery:
    """How the events of one consumer group reach its handlers: the retries, the breaker, the places."""

    config: EventBusConfig
    breaker: Breaker
    _places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONCURRENT_CALLS))

    async def deliver(self, handler: EventHandler, event: BaseEvent) -> int:
        """Let the handler take the event, however long an outage lasts; return the number of attempts.

        Raises HandlerError when the handler gave the event up: never for an outage.
        """
        while True:
            await self.breaker.wait()
            try:
                return await self.attempt(handler, event)
            except UnavailableError:
                await asyncio.sleep(backoff(self.config.retry_attempts + 1, self.config.retry_delay))

    async def attempt(self, handler: EventHandler, event: BaseEvent) -> int:
        """Let the handler take the event; return the number of attempts.

        Raises HandlerError when the handler gave it up, UnavailableError when an outage outlasts the
        attempts or the circuit is open; then the event is not at fault.
        """
        try:
            return await _retried(
                handler,
                event,
                lambda: self._once(handler, event),
                retries=self.config.retry_attempts,
                delay_s=self.config.retry_delay,
            )
        except HandlerError as failure:
            if failure.__cause__ is not None and is_outage(failure.__cause__):
                raise UnavailableError(str(failure)) from failure
            raise

    async def _once(self, handler: EventHandler, event: BaseEvent) -> None:
        async with self._places:
            with about(event_id=event.event_id, correlation_id=event.correlation_id):
                await self.breaker.call(lambda: _in_time(handler, event, self.config.handler_timeout))


async def _in_time(handler: EventHandler, event: BaseEvent, timeout_s: float) -> None:
    """Call the handler; one that does not come back is the event's fault and no outage."""
    limit = asyncio.timeout(timeout_s)
    began, result = time.perf_counter(), "failed"
    try:
        async with limit:
            await handler.handle(event)
        result = "ok"
    except TimeoutError as error:
        if limit.expired():
            raise HandlerTimeoutError(f"no answer within {timeout_s:g} s") from error
        raise
    finally:
        seconds, _ = _measures(handler.name, result)
        seconds.observe(time.perf_counter() - began)


async def _retried(
    handler: EventHandler,
    event: BaseEvent,
    call: Callable[[], Awaitable[None]],
    *,
    retries: int,
    delay_s: float,
) -> int:
    for attempt in range(1, retries + 2):
        try:
            await call()
        except Exception as error:
            if attempt > retries or is_permanent(error):
                reason = redact(f"{type(error).__name__}: {error}", secret_values(event.data))[:1000]
                raise HandlerError(
                    event.event_id, handler=handler.name, attempts=attempt, reason=reason
                ) from error
            _, again = _measures(handler.name, "failed")
            again.inc()
            await asyncio.sleep(backoff(attempt, delay_s))
        else:
            return attempt
    raise AssertionError("unreachable")


@cache
def _measures(handler: str, result: str) -> tuple[Histogram, Counter]:
    """Of a handler: its attempts that end so, and its retries, which are 0 from its first attempt on."""
    made = instruments()
    return made.handler_seconds.labels(handler, result), made.handler_retries.labels(handler)


def backoff(attempt: int, delay_s: float) -> float:
    """Seconds to wait after this many attempts: full jitter under a doubling bound."""
    return random.uniform(0, min(delay_s * 2 ** (attempt - 1), MAX_DELAY_S))  # noqa: S311 - not a secret
