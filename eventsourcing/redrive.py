"""Re-drive: give the events of parked aggregates to their handlers again.

A whole queue is driven, in version order, from the table of dead letters and never through a live topic.
Each letter goes with a transaction of its own, the last one releases the aggregate, and live consumption
goes on behind it: nothing overtakes and nothing is lost, and after `kill -9` another re-drive goes on
where this one stopped. A letter that fails again stays, and its queue behind it. An outage ends the
re-drive and changes no letter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from eventsourcing.breaker import CircuitBreaker
from eventsourcing.config import EventBusConfig
from eventsourcing.dead_letters import (
    PAGE,
    DeadLetter,
    fail_again,
    letter_event,
    remove_letter,
    scan_letters,
)
from eventsourcing.delivery import Delivery
from eventsourcing.errors import HandlerError, UnavailableError, UpcastError
from eventsourcing.events import BaseEvent
from eventsourcing.handlers import EventHandler
from eventsourcing.storage.base import Storage
from eventsourcing.unreadable import as_stored

SIDE_BY_SIDE = 4
"""How many aggregates one re-drive works on at a time."""


@dataclass(frozen=True, slots=True)
class ParkedSelection:
    """Which parked aggregates of a group: those whose failure in front fits all that is given."""

    group: str
    aggregate_id: str | None = None
    event_type: str | None = None
    fingerprint: str | None = None
    aggregates: tuple[str, ...] = ()
    """Any of these; none given is any at all."""

    @property
    def named(self) -> tuple[str, ...]:
        """The aggregates that are selected by name; none where any may be."""
        return self.aggregates if self.aggregate_id is None else (self.aggregate_id,)

    def takes(self, aggregate_id: str, row: dict[str, Any]) -> bool:
        """Whether a parked aggregate is selected."""
        return (
            self.aggregate_id in (None, aggregate_id)
            and (not self.aggregates or aggregate_id in self.aggregates)
            and self.event_type in (None, row.get("event_type"))
            and self.fingerprint in (None, row.get("fingerprint"))
        )


@dataclass(slots=True)
class RedriveResult:
    """What came of a re-drive. `letters` were handled; `released` and `failed` count aggregates.

    `stopped` says why it ended before the end of the selection: its cap, an outage, or somebody's wish.
    """

    letters: int = 0
    released: int = 0
    failed: int = 0
    stopped: str | None = None
    errors: dict[str, str] = field(default_factory=dict)
    """aggregate_id → its new failure, the first 100."""


class Redrive:
    """One re-drive at work."""

    def __init__(
        self,
        storage: Storage,
        config: EventBusConfig,
        group: str,
        handlers: Sequence[EventHandler],
        *,
        cap: int | None = None,
        should_stop: Callable[[RedriveResult], bool] | None = None,
    ) -> None:
        self._storage, self._group, self._handlers = storage, group, handlers
        breaker = CircuitBreaker(f"redrive/{group}", pause_s=config.outage_pause)
        self._delivery = Delivery(config, breaker)
        self._left, self._should_stop = cap, should_stop
        self.result = RedriveResult()

    async def run(self, aggregates: list[str]) -> RedriveResult:
        """Drive the queues of these aggregates, a few side by side. Raises UnavailableError when the store
        is away; then the letters not handled stay."""
        waiting = iter(aggregates)

        async def work() -> None:
            for aggregate_id in waiting:
                if self.result.stopped is not None:
                    return
                await self._drive(aggregate_id)

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(SIDE_BY_SIDE):
                    tasks.create_task(work())
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return self.result

    async def _drive(self, aggregate_id: str) -> None:
        while True:
            async with self._storage.transaction() as transaction:
                page = await scan_letters(transaction, self._group, aggregate_id, limit=PAGE)
            if not page:
                self.result.released += 1
                return
            for key, row in page:
                if not self._may_go_on() or not await self._drive_row(key, row):
                    return

    async def _drive_row(self, key: str, row: dict[str, Any]) -> bool:
        """Give one letter to its handler; False when the queue must wait behind it."""
        try:
            event = letter_event(row)
        except UpcastError as fault:
            name, reason = row["handler"] or "reading", str(fault)
            failure = HandlerError(fault.event_id, handler=name, attempts=0, reason=reason)
            failure.__cause__ = fault
            await self._failed(key, DeadLetter(as_stored(fault), failure), failure)
            return False
        return await self._drive_one(key, event)

    def _may_go_on(self) -> bool:
        if self._should_stop is not None and self._should_stop(self.result):
            self.result.stopped = self.result.stopped or "asked to stop"
        if self._left == 0:
            self.result.stopped = self.result.stopped or "the cap is reached"
        elif self._left is not None:
            self._left -= 1
        return self.result.stopped is None

    async def _drive_one(self, key: str, event: BaseEvent) -> bool:
        handler = next((h for h in self._handlers if h.can_handle(event.event_type)), None)
        try:
            if handler is not None:
                await self._delivery.attempt(handler, event)
        except UnavailableError as outage:
            self.result.stopped = f"what the handler needs is away: {outage}"
            return False
        except HandlerError as failure:
            await self._failed(key, DeadLetter(event, failure), failure)
            return False
        async with self._storage.transaction() as transaction:
            await remove_letter(transaction, self._group, event.aggregate_id, key)
        self.result.letters += 1
        return True

    async def _failed(self, key: str, letter: DeadLetter, failure: HandlerError) -> None:
        async with self._storage.transaction() as transaction:
            await fail_again(transaction, self._group, key, letter)
        self.result.failed += 1
        if len(self.result.errors) < PAGE:
            self.result.errors[letter.event.aggregate_id] = str(failure)
