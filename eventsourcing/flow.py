"""What a consumer group has in hand: each aggregate's events on a lane of their own, in order.

Lanes run side by side, so an aggregate that is slow or retries holds nobody else back; at most
`IN_HAND` events are on their way, then reading pauses. A checkpoint is a position below which everything
is handled or parked, but for the lanes that have been under way for longer than `PATIENCE_S`: those it
names, each with the first position that is still to be handled.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from eventsourcing.dead_letters import DeadLetter
from eventsourcing.delivery import Delivery
from eventsourcing.errors import HandlerError
from eventsourcing.events import RecordedEvent
from eventsourcing.transport.base import Subscription

_log = logging.getLogger(__name__)

IN_HAND = 1000
PATIENCE_S = 0.1

Taker = Callable[[RecordedEvent], Subscription | None]


@dataclass(slots=True)
class Lane:
    """The events of one aggregate on their way; the first one is being handled."""

    events: deque[RecordedEvent] = field(default_factory=deque)
    since: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class Progress:
    """What can be recorded now: a position, the slow lanes at or below it, and what waits to be parked."""

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
    _lanes: dict[str, Lane] = field(default_factory=dict)
    _failed: dict[str, DeadLetter] = field(default_factory=dict)
    _behind: dict[str, list[RecordedEvent]] = field(default_factory=dict)
    _count: int = 0
    _floor: int = 0
    _room: asyncio.Event = field(default_factory=asyncio.Event)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._floor = self.position

    async def take(self, tasks: asyncio.TaskGroup, event: RecordedEvent) -> None:
        """Take an event in hand, its aggregate's next one; wait while too much is on its way."""
        if self.taker(event) is not None:
            while self._count >= IN_HAND:
                self._room.clear()
                self.changed.set()
                await self._room.wait()
            self._add(tasks, event)
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

    def progress(self, *, patience_s: float = PATIENCE_S) -> Progress:
        """What can be recorded now. Its position never falls behind one that was recorded."""
        limit = time.monotonic() - patience_s
        firsts = {name: lane.events[0].position for name, lane in self._lanes.items()}
        position = self.position
        for name, lane in self._lanes.items():
            if lane.since > limit and firsts[name] > self._floor:
                position = min(position, firsts[name] - 1)
        return Progress(
            position,
            {name: first for name, first in firsts.items() if first <= position},
            {name: letter for name, letter in self._failed.items() if _place(letter) <= position},
            {name: upto for name, events in self._behind.items() if (upto := _upto(events, position))},
        )

    def recorded(self, tasks: asyncio.TaskGroup, progress: Progress, released: set[str]) -> None:
        """Forget what was recorded; put the events of released aggregates on lanes again."""
        self._floor = max(self._floor, progress.position)
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
        events = self._behind.pop(name)
        self._count -= len(events)
        for event in events:
            self._add(tasks, event)

    def _add(self, tasks: asyncio.TaskGroup, event: RecordedEvent) -> None:
        name = event.aggregate_id
        self._count += 1
        if name in self.parked:
            self._behind.setdefault(name, []).append(event)
        elif name in self._lanes:
            self._lanes[name].events.append(event)
        else:
            lane = self._lanes[name] = Lane(deque([event]))
            tasks.create_task(self._run(name, lane))

    async def _run(self, name: str, lane: Lane) -> None:
        """Deliver a lane's events in order until it is empty or one of them is given up."""
        while lane.events:
            event = lane.events[0]
            member = self.taker(event)
            try:
                if member is not None:
                    await self.delivery.deliver(member.handler, event)
            except HandlerError as failure:
                _log.error("group %s: %s; aggregate %s is parked", self.group, failure, name)
                lane.events.popleft()
                self._failed[name] = DeadLetter(event, failure)
                self.parked.add(name)
                if lane.events:
                    self._behind[name] = list(lane.events)
                break
            lane.events.popleft()
            lane.since = time.monotonic()
            self._count -= 1
            self._room.set()
        del self._lanes[name]
        self.changed.set()
        if not self._lanes:
            self._idle.set()


def _place(letter: DeadLetter) -> int:
    assert isinstance(letter.event, RecordedEvent), "a group over the store takes what the store recorded"
    return letter.event.position


def _upto(events: list[RecordedEvent], position: int) -> list[RecordedEvent]:
    """The events at or below a position; they stand in order."""
    return [event for event in events if event.position <= position]
