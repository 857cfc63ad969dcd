"""A consumer group over the store: one active process follows the store from the group's checkpoint.

Each event is delivered at least once, in version order per aggregate; aggregates do not wait for each
other. An event whose attempts are spent, or whose payload cannot be read, becomes a dead letter, and its
aggregate waits behind it; dead letters and checkpoint commit together. An outage parks nothing: the
circuit opens, the group pauses, and goes on by itself. A process that lost its lease without noticing
cannot move the checkpoint.

States: standing by (another process holds the lease) → following → paused (circuit open) → following.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from eventsourcing.breaker import BreakerState, CircuitBreaker
from eventsourcing.config import EventBusConfig
from eventsourcing.dead_letters import DeadLetter, lock_parked, park, parked_aggregates
from eventsourcing.delivery import Delivery
from eventsourcing.errors import BusyError, EventSourcingError
from eventsourcing.events import RecordedEvent
from eventsourcing.flow import Flow, Progress
from eventsourcing.logs import spoken
from eventsourcing.query import EventQuery
from eventsourcing.storage.base import CHECKPOINTS, StateTransaction, Storage
from eventsourcing.supervision import lead, supervise
from eventsourcing.tail import follow
from eventsourcing.transport.base import Subscription
from eventsourcing.unreadable import read_past_faults

_log = logging.getLogger(__name__)


def checkpoint_key(group: str) -> str:
    """Under which key the checkpoint of a consumer group stands.

    Value: {position, held, owner, circuit}. Everything up to `position` is handled or parked, but for
    the aggregates in `held`, from the position given there on.
    """
    return f"group/{group}"


@dataclass
class GroupConsumer:
    """Feeds the members of one consumer group, which all begin at `start`.

    A subscription without a group has a consumer of its own: it holds no lease and keeps no checkpoint,
    but goes on from `position` for as long as the process lives.
    """

    storage: Storage
    config: EventBusConfig
    members: list[Subscription]
    position: int = 0

    @property
    def group(self) -> str | None:
        """The name of the group; None when it is private to the process."""
        return self.members[0].group

    @property
    def identity(self) -> str:
        """Under which name its dead letters and its circuit stand."""
        return self.members[0].identity

    async def run(self) -> None:
        """Consume until cancelled, for the group while its lease is ours."""
        if self.group is None:
            await supervise(self.identity, self._follow_alone)
        else:
            await lead(self.storage, checkpoint_key(self.group), self._follow_as_group)

    async def _follow_alone(self) -> None:
        async with self._flowing(self.position, set()) as (flow, tasks):
            tasks.create_task(self._record(tasks, flow, owner=None))
            await self._read(tasks, flow)

    async def _follow_as_group(self) -> None:
        """Go on at the group's checkpoint, behind its dead letters, with what was left in hand."""
        assert self.group is not None, "only a group has a checkpoint"
        owner = uuid4().hex
        parked = await parked_aggregates(self.storage, self.group)
        checkpoint = await self._take_over(self.group, owner)
        async with self._flowing(checkpoint["position"], parked) as (flow, tasks):
            try:
                for aggregate_id, first in sorted(checkpoint.get("held", {}).items()):
                    await self._take_up(tasks, flow, aggregate_id, first)
                tasks.create_task(self._record(tasks, flow, owner=owner))
                await self._read(tasks, flow)
            finally:
                await self._record_the_end(tasks, flow, owner)

    @asynccontextmanager
    async def _flowing(
        self, position: int, parked: set[str]
    ) -> AsyncIterator[tuple[Flow, asyncio.TaskGroup]]:
        """A flow from a position and the group of its tasks; the first error of them ends it."""
        changed = asyncio.Event()

        def on_change(state: BreakerState) -> None:
            _log.warning("group %s: the circuit is %s", self.identity, state)
            changed.set()

        breaker = CircuitBreaker(self.identity, pause_s=self.config.outage_pause, on_change=on_change)
        delivery = Delivery(self.config, breaker)
        flow = Flow(delivery, self._taker, self.identity, position, parked, changed)
        try:
            async with asyncio.TaskGroup() as tasks:
                yield flow, tasks
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    def _taker(self, event: RecordedEvent) -> Subscription | None:
        """The first member that takes the event."""
        return next((member for member in self.members if member.takes(event)), None)

    def _query(self) -> EventQuery:
        if any(not member.event_types for member in self.members):
            return EventQuery()
        types = {name for member in self.members for name in member.event_types}
        return EventQuery(event_types=tuple(sorted(types)))

    async def _take_over(self, group: str, owner: str) -> dict[str, Any]:
        """The checkpoint, from now on ours. A group seen for the first time starts where it says."""
        begin = 0 if self.members[0].start == "beginning" else await self.storage.horizon()
        key = checkpoint_key(group)
        async with self.storage.transaction() as transaction:
            await transaction.add(CHECKPOINTS, key, {"position": begin})
            checkpoint = await transaction.get(CHECKPOINTS, key, lock=True)
            assert checkpoint is not None, "it is there since the line before"
            await transaction.put(CHECKPOINTS, key, {**checkpoint, "owner": owner})
        return dict(checkpoint)

    async def _take_up(self, tasks: asyncio.TaskGroup, flow: Flow, aggregate_id: str, first: int) -> None:
        """Take in hand again what a held aggregate has up to the checkpoint."""
        window = self._query().where(
            aggregate_id=aggregate_id, after_position=first - 1, to_position=flow.position
        )
        async for batch in read_past_faults(self.storage, window, batch_size=500):
            for event in batch.events:
                await flow.take(tasks, event, batch.faults.get(event.position))

    async def _read(self, tasks: asyncio.TaskGroup, flow: Flow) -> None:
        async for piece in follow(self.storage, self._query(), after=flow.position, past_faults=True):
            for event in piece.events:
                await flow.take(tasks, event, piece.faults.get(event.position))
            flow.reached(piece.position)

    async def _record(self, tasks: asyncio.TaskGroup, flow: Flow, *, owner: str | None) -> None:
        """Record progress whenever there is some; of a private subscription, its dead letters only."""
        last = None
        while True:
            await flow.settle()
            progress = flow.progress()
            state = (progress.position, progress.held, flow.delivery.breaker.state)
            if state != last or progress.failed or progress.behind:
                await self._commit(tasks, flow, progress, owner)
                last = state

    async def _record_the_end(self, tasks: asyncio.TaskGroup, flow: Flow, owner: str) -> None:
        """Record what is done when the work ends; without it some of it would only be repeated."""
        try:
            async with asyncio.timeout(5):
                await self._commit(tasks, flow, flow.progress(), owner)
        except (EventSourcingError, TimeoutError) as error:
            _log.warning("group %s: the last checkpoint was not written: %s", self.identity, spoken(error))

    async def _commit(
        self, tasks: asyncio.TaskGroup, flow: Flow, progress: Progress, owner: str | None
    ) -> None:
        """Park what failed and what waits behind, and move the checkpoint, together or not at all."""
        behind = set(progress.behind) - set(progress.failed)
        async with self.storage.transaction() as transaction:
            released = behind - await lock_parked(transaction, self.identity, behind)
            await park(transaction, self.identity, _letters(progress, released))
            if owner is not None:
                held = {name: progress.behind[name][0].position for name in released}
                checkpoint = {
                    "position": progress.position,
                    "held": {**progress.held, **held},
                    "owner": owner,
                    "circuit": flow.delivery.breaker.state,
                }
                await self._move(transaction, checkpoint)
        flow.recorded(tasks, progress, released)
        if owner is None:
            self.position = min([progress.position, *(first - 1 for first in progress.held.values())])

    async def _move(self, transaction: StateTransaction, checkpoint: dict[str, Any]) -> None:
        """Move the checkpoint, unless another process took it over."""
        assert self.group is not None, "only a group has a checkpoint"
        stored = await transaction.get(CHECKPOINTS, checkpoint_key(self.group), lock=True)
        if stored is not None and stored.get("owner") != checkpoint["owner"]:
            raise BusyError(f"another process leads the consumer group {self.group!r}")
        await transaction.put(CHECKPOINTS, checkpoint_key(self.group), checkpoint)


def _letters(progress: Progress, released: set[str]) -> list[DeadLetter]:
    """What becomes dead letters, in version order for each aggregate."""
    behind = {name: events for name, events in progress.behind.items() if name not in released}
    waiting = [DeadLetter(event) for events in behind.values() for event in events]
    return [*progress.failed.values(), *waiting]
