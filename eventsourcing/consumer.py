"""A consumer group over the store: one active process follows the store from the group's checkpoint.

Each event is delivered at least once, in version order per aggregate; aggregates do not wait for each
other within a slice. An event whose attempts are spent becomes a dead letter, and its aggregate waits
behind it; the dead letters commit with the checkpoint. An outage parks nothing: the consumer pauses
and begins again at its checkpoint.

States: standing by (another process holds the lease) → following → paused (outage) → following.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from eventsourcing.config import EventBusConfig
from eventsourcing.dead_letters import DeadLetter, park, parked_aggregates
from eventsourcing.delivery import call_with_retry, is_outage
from eventsourcing.errors import HandlerError
from eventsourcing.events import RecordedEvent
from eventsourcing.query import EventQuery
from eventsourcing.storage.base import CHECKPOINTS, Storage
from eventsourcing.supervision import lead, supervise
from eventsourcing.tail import Slice, follow
from eventsourcing.transport.base import Subscription

_log = logging.getLogger(__name__)

CONCURRENT_AGGREGATES = 16


class OutageError(Exception):
    """Something that a handler needs is away; the event is not at fault."""


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
    _parked: set[str] = field(default_factory=set)

    @property
    def group(self) -> str | None:
        """The name of the group; None when it is private to the process."""
        return self.members[0].group

    async def run(self) -> None:
        """Consume until cancelled, for the group while its lease is ours."""
        if self.group is None:
            await supervise(self.members[0].identity, self._follow)
        else:
            await lead(self.storage, f"group/{self.group}", self._resume)

    async def _resume(self) -> None:
        """Go on at the group's checkpoint, behind its dead letters."""
        assert self.group is not None, "only a group has a checkpoint"
        self._parked = await parked_aggregates(self.storage, self.group)
        self.position = await self._checkpoint(self.group)
        await self._follow()

    async def _checkpoint(self, group: str) -> int:
        """Where to go on. A group seen for the first time starts where it says and keeps that."""
        begin = 0 if self.members[0].start == "beginning" else await self.storage.horizon()
        async with self.storage.transaction() as transaction:
            await transaction.add(CHECKPOINTS, f"group/{group}", {"position": begin})
            checkpoint = await transaction.get(CHECKPOINTS, f"group/{group}")
        assert checkpoint is not None
        position: int = checkpoint["position"]
        return position

    async def _follow(self) -> None:
        types: set[str] = set()
        for member in self.members:
            types |= member.event_types
        everything = any(not member.event_types for member in self.members)
        query = EventQuery(event_types=() if everything else tuple(sorted(types)))
        async for piece in follow(self.storage, query, after=self.position):
            await self._deliver_slice(piece)
            self.position = piece.position

    async def _deliver_slice(self, piece: Slice) -> None:
        by_aggregate: dict[str, list[RecordedEvent]] = {}
        for event in piece.events:
            by_aggregate.setdefault(event.aggregate_id, []).append(event)
        gate = asyncio.Semaphore(CONCURRENT_AGGREGATES)
        results = await asyncio.gather(
            *(self._deliver_aggregate(gate, events) for events in by_aggregate.values())
        )
        letters = [letter for result in results for letter in result]
        if self.group is None and not letters:
            return
        async with self.storage.transaction() as transaction:
            await park(transaction, self.members[0].identity, letters)
            if self.group is not None:
                await transaction.put(CHECKPOINTS, f"group/{self.group}", {"position": piece.position})
        self._parked |= {letter.event.aggregate_id for letter in letters}

    async def _deliver_aggregate(
        self, gate: asyncio.Semaphore, events: Sequence[RecordedEvent]
    ) -> list[DeadLetter]:
        """Deliver in order; what comes behind a failure is returned as waiting behind it."""
        if events[0].aggregate_id in self._parked:
            return [DeadLetter(event) for event in events]
        async with gate:
            for place, event in enumerate(events):
                try:
                    await self._deliver(event)
                except HandlerError as failure:
                    _log.error("group %s: %s", self.group, failure)
                    waiting = [DeadLetter(later) for later in events[place + 1 :]]
                    return [DeadLetter(event, failure), *waiting]
        return []

    async def _deliver(self, event: RecordedEvent) -> None:
        """Give the event to the first member that takes it."""
        member = next((member for member in self.members if member.takes(event)), None)
        if member is None:
            return
        try:
            await call_with_retry(
                member.handler, event, retries=self.config.retry_attempts, delay_s=self.config.retry_delay
            )
        except HandlerError as error:
            if error.__cause__ is not None and is_outage(error.__cause__):
                raise OutageError(str(error)) from error
            raise
