"""From the order gate to the handlers of one group: retries, parking, checkpoints.

Every aggregate is worked on by itself, in order; a retry of one lets the others flow. The group's
checkpoint of an aggregate is the last version that is done, applied or parked. A group of folds applies
what is ready in one transaction with the checkpoints: an effect exactly once. Other handlers are called,
then the checkpoints follow: an effect at least once. Only then is an event settled and its offset free.

A failure of the store ends the delivery; whoever began it begins again at the committed offsets.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from eventsourcing.breaker import BreakerState, CircuitBreaker
from eventsourcing.config import EventBusConfig
from eventsourcing.dead_letters import PARKED, DeadLetter, lock_parked, park
from eventsourcing.delivery import Delivery
from eventsourcing.errors import HandlerError, UnavailableError
from eventsourcing.events import BaseEvent, RecordedEvent
from eventsourcing.failures import is_outage
from eventsourcing.fold_handler import FoldHandler, advance, checkpoint_key
from eventsourcing.gate import Arrival, OrderGate
from eventsourcing.handlers import EventHandler
from eventsourcing.logs import spoken
from eventsourcing.query import EventQuery
from eventsourcing.storage.base import StateTable, StateTransaction, Storage
from eventsourcing.transport.base import Subscription
from eventsourcing.transport.kafka_dead_letters import DeadLetterTopic
from eventsourcing.unreadable import read_past_faults

_log = logging.getLogger(__name__)

GROUP_CHECKPOINTS = StateTable("group-checkpoints")
"""Key: group and aggregate_id. Value: {version}, the last one that is done."""

_DRAIN_POLL_S = 0.005


@dataclass
class GroupDelivery:
    """Delivers to the members of one group. `settled` is told of each arrival that is done; events at or
    below the position `begin` are done already. Without a store behind the topics nothing is `recorded`:
    events are delivered as they come, and only the offsets remember."""

    config: EventBusConfig
    storage: Storage
    members: Sequence[Subscription]
    topic: DeadLetterTopic | None
    settled: Callable[[Arrival], None]
    begin: int
    recorded: bool
    gate: OrderGate = field(default_factory=OrderGate)
    failure: BaseException | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _ready: dict[str, list[Arrival]] = field(default_factory=dict)
    _done: list[Arrival] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _settling: bool = False
    _closing: bool = False

    def __post_init__(self) -> None:
        self._group = self.members[0].identity
        breaker = CircuitBreaker(self._group, pause_s=self.config.outage_pause, on_change=self._tell)
        self._calls = Delivery(self.config, breaker)
        self._folds = all(isinstance(member.handler, FoldHandler) for member in self.members)
        self._background = self._start(self._settle_forever())

    async def take(self, arrivals: Sequence[Arrival]) -> None:
        """Take in what arrived, in the order of each partition, and begin with what may go through."""
        await self._open(arrivals)
        for arrival in arrivals:
            if self._before_begin(arrival.event):
                self.gate.skip(arrival)
                self.settled(arrival)
            elif not self.gate.offer(arrival):
                self.settled(arrival)
        for key in dict.fromkeys(arrival.key for arrival in arrivals):
            self._advance(key)
        self.gate.trim()

    def check(self) -> None:
        """Raise what a task of the delivery failed with."""
        if self.failure is not None:
            raise self.failure

    def fill_gaps(self) -> None:
        """Read from the store what some aggregate has waited for too long."""
        for key in self.gate.stuck(time.monotonic() - self.config.gap_timeout):
            self.gate[key].busy = True
            self._start(self._fill(key))

    async def drain(self, within_s: float) -> None:
        """Begin nothing new, and wait for what is in hand. What takes longer is cancelled, and ends the
        delivery: it knows no more what of it is done."""
        self._closing = True
        deadline = time.monotonic() + within_s
        while self.failure is None and (self._ready or self._done or self._settling or self._working()):
            if time.monotonic() > deadline:
                for task in self._working():
                    task.cancel()
                self.failure = UnavailableError(
                    f"group {self._group}: handlers took more than {within_s:g} s"
                )
                break
            self._wake.set()
            await asyncio.sleep(_DRAIN_POLL_S)
        self._closing = False

    def forget(self, partitions: set[int], still_ours: Callable[[Arrival], bool]) -> list[Arrival]:
        """Give up the aggregates of these partitions; return what waited in them and is still ours."""
        return [arrival for arrival in self.gate.forget(partitions) if still_ours(arrival)]

    async def close(self) -> None:
        """End every task."""
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What goes through the gate

    async def _open(self, arrivals: Sequence[Arrival]) -> None:
        """Learn where the aggregates stand that the gate does not know."""
        first = {arrival.key: arrival for arrival in reversed(arrivals)}
        unknown = self.gate.unknown(arrival.key for arrival in arrivals)
        if not unknown:
            return
        keys = {key: checkpoint_key(self._group, first[key].event.aggregate_id) for key in unknown}
        async with self.storage.transaction() as transaction:
            rows = await transaction.get_many(GROUP_CHECKPOINTS, list(keys.values()))
            parked = await transaction.get_many(PARKED, list(keys.values()))
        for key, row_key in keys.items():
            recorded = isinstance(first[key].event, RecordedEvent)
            seen = rows[row_key]["version"] if recorded and row_key in rows else None
            if seen is None:
                seen = await self._seen_at_begin(first[key].event) if recorded else 0
            self.gate.open(key, seen=seen, parked=row_key in parked, partition=first[key].partition)

    def _before_begin(self, event: BaseEvent) -> bool:
        return isinstance(event, RecordedEvent) and event.position <= self.begin

    async def _seen_at_begin(self, event: BaseEvent) -> int:
        """The aggregate's version where the group began, unless it shows by the events that come."""
        if self.begin == 0 or event.event_version == 1 or self._before_begin(event):
            return 0
        query = EventQuery(aggregate_id=event.aggregate_id, to_position=self.begin, backwards=True, limit=1)
        async for batch in self.storage.read(query, batch_size=1):
            return batch[0].event_version
        return 0

    def _advance(self, key: str) -> None:
        stream = self.gate[key]
        if stream.busy or self._closing:
            return
        run = self.gate.take(key, time.monotonic())
        if not run:
            return
        stream.busy = True
        if self._folds and not stream.parked and not any(arrival.fault for arrival in run):
            self._ready[key] = run
            self._wake.set()
        else:
            self._start(self._deliver(key, run))

    async def _fill(self, key: str) -> None:
        """Offer what the store has between what was seen and what waits, then let the waiting through."""
        stream = self.gate[key]
        head = stream.waiting[stream.order[0]]
        async with self.storage.transaction() as transaction:
            row = await transaction.get(
                GROUP_CHECKPOINTS, checkpoint_key(self._group, head.event.aggregate_id)
            )
        stream.seen = max(stream.seen, row["version"] if row else 0)  # another process may have gone on
        query = EventQuery(
            aggregate_id=head.event.aggregate_id,
            from_version=stream.seen + 1,
            to_version=head.version - 1,
            after_position=self.begin,
        )
        filled = 0
        async for batch in read_past_faults(self.storage, query, batch_size=500):
            for event in batch.events:
                if any(member.takes(event) for member in self.members):
                    unread = batch.faults.get(event.position)
                    fault = None if unread is None else undecodable(event, unread, str(unread))
                    arrival = Arrival(key, event.event_version, event, head.partition, fault=fault)
                    filled += self.gate.offer(arrival)
        head.predecessor = 0
        _log.warning(
            "group %s: %s events of %s did not arrive within %g s and come from the store",
            self._group,
            filled,
            head.event.aggregate_id,
            self.config.gap_timeout,
        )
        self._free(key)

    # Delivery

    async def _deliver(self, key: str, run: list[Arrival]) -> None:
        """Hand over one aggregate's events in order; behind a failure they are parked."""
        stream = self.gate[key]
        for place, arrival in enumerate(run):
            if stream.parked and await self._park(key, run[place:], None):
                break
            failure = await self._attempt(arrival)
            if failure is not None:
                _log.error("group %s: %s", self._group, spoken(failure))
                await self._park(key, run[place:], failure)
                break
            self._done.append(arrival)
            self._wake.set()
        self._free(key)

    async def _attempt(self, arrival: Arrival) -> HandlerError | None:
        """Give the event to the first member that takes it, however long an outage lasts."""
        if arrival.fault is not None:
            return arrival.fault
        member = next((member for member in self.members if member.takes(arrival.event)), None)
        if member is None:
            return None
        handler = member.handler
        if isinstance(handler, FoldHandler):
            handler = _InTransaction(handler, self.storage, self._group)
        try:
            await self._calls.deliver(handler, arrival.event)
        except HandlerError as failure:
            return failure
        return None

    def _tell(self, state: BreakerState) -> None:
        _log.warning("group %s: the circuit is %s", self._group, state)

    async def _park(self, key: str, arrivals: Sequence[Arrival], failure: HandlerError | None) -> bool:
        """Make dead letters of a failure and what is behind it; False when the aggregate is free again."""
        aggregate_id = arrivals[0].event.aggregate_id
        if self.topic is not None:
            await self.topic.publish(arrivals, failure)
        async with self.storage.transaction() as transaction:
            if failure is None and not await lock_parked(transaction, self._group, [aggregate_id]):
                self.gate[key].parked = False
                return False
            fresh = await self._checkpoint(transaction, arrivals)
            first = arrivals[0].event
            letters = [DeadLetter(event, failure if event is first else None) for event in fresh]
            await park(transaction, self._group, letters)
        self.gate[key].parked = True
        self._settle(arrivals)
        return True

    # Checkpoints

    async def _settle_forever(self) -> None:
        """Apply what is ready for folds, and move the checkpoints past what handlers took."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._settling = True
            ready, self._ready = self._ready, {}
            if ready:
                await self._apply(ready)
            done, self._done = self._done, []
            if done:
                async with self.storage.transaction() as transaction:
                    await self._checkpoint(transaction, done)
                self._settle(done)
            self._settling = False

    async def _apply(self, ready: dict[str, list[Arrival]]) -> None:
        """Everything ready in one transaction; when it fails, each aggregate for itself."""
        arrivals = [arrival for run in ready.values() for arrival in run]
        try:
            async with self.storage.transaction() as transaction:
                fresh = await self._checkpoint(transaction, arrivals)
                for member in self.members:
                    assert isinstance(member.handler, FoldHandler)
                    mine = [event for event in fresh if self._taker(event) is member]
                    await member.handler.apply(transaction, mine)
        except Exception as error:
            if is_outage(error):
                raise
            for key, run in ready.items():
                self._start(self._deliver(key, run))
            return
        self._settle(arrivals)
        for key in ready:
            self._free(key)

    async def _checkpoint(
        self, transaction: StateTransaction, arrivals: Sequence[Arrival]
    ) -> list[BaseEvent]:
        """Move the group's checkpoints past these events; return those that nobody was past."""
        events = [arrival.event for arrival in arrivals]
        if not self.recorded:
            return events
        return await advance(transaction, GROUP_CHECKPOINTS, self._group, events)

    def _working(self) -> set[asyncio.Task[None]]:
        return self._tasks - {self._background}

    def _taker(self, event: BaseEvent) -> Subscription | None:
        return next((member for member in self.members if member.takes(event)), None)

    def _settle(self, arrivals: Sequence[Arrival]) -> None:
        for arrival in arrivals:
            self.gate.settle(arrival.key)
            self.settled(arrival)

    def _free(self, key: str) -> None:
        if self.gate.release(key):
            self._advance(key)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.failure = self.failure or task.exception()


class _InTransaction(EventHandler):
    """A fold's handler whose effect commits with the group's checkpoint."""

    def __init__(self, handler: FoldHandler, storage: Storage, group: str) -> None:
        self._handler, self._storage, self._group = handler, storage, group

    @property
    def name(self) -> str:
        return self._handler.name

    def can_handle(self, event_type: str) -> bool:
        return self._handler.can_handle(event_type)

    async def handle(self, event: BaseEvent) -> None:
        async with self._storage.transaction() as transaction:
            await self._handler.apply(
                transaction, await advance(transaction, GROUP_CHECKPOINTS, self._group, [event])
            )


def undecodable(event: BaseEvent, error: Exception, reason: str) -> HandlerError:
    """Why no handler can take an event: what it says cannot be read."""
    fault = HandlerError(event.event_id, handler="decoding", attempts=1, reason=reason)
    fault.__cause__ = error
    return fault
