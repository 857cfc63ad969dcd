"""What a consumer group has in hand: each aggregate's events on a lane of their own, in order.

Lanes run side by side, so an aggregate that is slow or retries holds nobody else back; at most
`IN_HAND` events are on their way, then reading pauses. A checkpoint is the position up to which
everything was taken in hand, with the lanes still under way then: each with the first position that is
to be handled. So it goes past a slow lane, and a restart repeats what was under way and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from eventsourcing.dead_letters import DeadLetter
from eventsourcing.delivery import Delivery
from eventsourcing.errors import HandlerError, UpcastError
from eventsourcing.events import RecordedEvent
from eventsourcing.handlers import EventHandler
from eventsourcing.logs import spoken
from eventsourcing.transport.base import Subscription

_log = logging.getLogger(__name__)

IN_HAND = 500

PATIENCE_S = 0.1
"""How long recording waits for lanes to end, so that a busy group does not record every event."""

Taker = Callable[[RecordedEvent], Subscription | None]


class InHand(NamedTuple):
    """An event, the handler that takes it, and why it cannot: its payload cannot be read."""

    event: RecordedEvent
    handler: EventHandler
    fault: UpcastError | None = None


@dataclass(slots=True)
class Progress:
    """What can be recorded now: a position, the lanes still under way, and what is to be parked."""

    position: int
    held: dict[str, int]
    failed: dict[str, DeadLetter]
    behind: dict[str, list[RecordedEvent]]


@dataclass
class Flow:
    """The lanes of one consumer group, and what its parked aggregates have waiting."""

    delivery: Delivery
    taker: Taker
    group: str
    position: int
    parked: set[str] = field(default_factory=set)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _lanes: dict[str, deque[InHand]] = field(default_factory=dict)
    _failed: dict[str, DeadLetter] = field(default_factory=dict)
    _behind: dict[str, list[InHand]] = field(default_factory=dict)
    _count: int = 0
    _room: asyncio.Event = field(default_factory=asyncio.Event)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(
        self, tasks: asyncio.TaskGroup, event: RecordedEvent, fault: UpcastError | None = None
    ) -> None:
        """Take an event in hand, its aggregate's next one; wait while too much is on its way.

        One with a fault is given up without being tried, once those before it are done.
        """
        member = self.taker(event)
        if member is not None:
            while self._count >= IN_HAND:
                self._room.clear()
                self.changed.set()
                await self._room.wait()
            self._add(tasks, InHand(event, member.handler, fault))
        self.reached(event.position)

    def reached(self, position: int) -> None:
        """Note that everything up to a position is in hand."""
        if position > self.position:
            self.position = position
            self.changed.set()

    async def settle(self) -> None:
        """Wait until something changed, then until no lane is under way or patience ends."""
        await self.changed.wait()
        self.changed.clear()
        if self._lanes:
            self._idle.clear()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self._idle.wait()
            except TimeoutError:
                self.changed.set()  # come back for what is still under way

    def progress(self) -> Progress:
        """What can be recorded now."""
        return Progress(
            self.position,
            {name: lane[0].event.position for name, lane in self._lanes.items()},
            dict(self._failed),
            {name: [one.event for one in behind] for name, behind in self._behind.items()},
        )

    def recorded(self, tasks: asyncio.TaskGroup, progress: Progress, released: set[str]) -> None:
        """Forget what was recorded; put the events of released aggregates on lanes again."""
        for name in progress.failed:
            del self._failed[name]
            self._count -= 1
        for name, events in progress.behind.items():
            rest = self._behind[name][len(events) :]
            if name in released:
                self._release(tasks, name)
                continue
            self._count -= len(events)
            if rest:
                self._behind[name] = rest
            else:
                del self._behind[name]
        self._room.set()

    def _release(self, tasks: asyncio.TaskGroup, name: str) -> None:
        self.parked.discard(name)
        behind = self._behind.pop(name)
        self._count -= len(behind)
        for one in behind:
            self._add(tasks, one)

    def _add(self, tasks: asyncio.TaskGroup, one: InHand) -> None:
        name = one.event.aggregate_id
        self._count += 1
        if name in self.parked:
            self._behind.setdefault(name, []).append(one)
        elif name in self._lanes:
            self._lanes[name].append(one)
        else:
            lane = self._lanes[name] = deque([one])
            tasks.create_task(self._run(name, lane))

    async def _run(self, name: str, lane: deque[InHand]) -> None:
        """Deliver a lane's events in order until it is empty or one of them is given up."""
        while lane:
            event = lane[0].event
            try:
                await self._deliver(lane[0])
            except HandlerError as failure:
                _log.error("group %s: %s; aggregate %s is parked", self.group, spoken(failure), name)
                lane.popleft()
                self._failed[name] = DeadLetter(event, failure)
                self.parked.add(name)
                if lane:
                    self._behind[name] = list(lane)
                break
            lane.popleft()
            self._count -= 1
            self._room.set()
        del self._lanes[name]
        self.changed.set()
        if not self._lanes:
            self._idle.set()

    async def _deliver(self, one: InHand) -> None:
        event, handler, fault = one
        if fault is not None:
            name = handler.name
            raise HandlerError(event.event_id, handler=name, attempts=0, reason=str(fault)) from fault
        await self.delivery.deliver(handler, event)
