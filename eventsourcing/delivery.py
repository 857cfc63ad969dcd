"""Call a handler, and call it again when it fails: bounded, with exponential back-off and full jitter."""

from __future__ import annotations

import asyncio
import random

from eventsourcing.errors import EventSourcingError, HandlerError
from eventsourcing.events import BaseEvent
from eventsourcing.handlers import EventHandler

MAX_DELAY_S = 30.0


def is_outage(error: BaseException) -> bool:
    """Whether the fault lies with something that is away, and not with the event."""
    if isinstance(error, EventSourcingError):
        return error.retryable
    return isinstance(error, OSError)


async def call_with_retry(handler: EventHandler, event: BaseEvent, *, retries: int, delay_s: float) -> int:
    """Let the handler take the event; return the number of attempts.

    Waits a random time up to `delay_s` doubled with each attempt. Raises HandlerError, its cause
    chained, when the attempts are spent.
    """
    for attempt in range(1, retries + 2):
        try:
            await handler.handle(event)
        except Exception as error:
            if attempt > retries:
                raise HandlerError(
                    event.event_id, handler=handler.name, attempts=attempt, reason=_reason(error)
                ) from error
            await asyncio.sleep(backoff(attempt, delay_s))
        else:
            return attempt
    raise AssertionError("unreachable")


def backoff(attempt: int, delay_s: float) -> float:
    """Seconds to wait after this many attempts: full jitter under a doubling bound."""
    return random.uniform(0, min(delay_s * 2 ** (attempt - 1), MAX_DELAY_S))  # noqa: S311 - not a secret


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:1000]
