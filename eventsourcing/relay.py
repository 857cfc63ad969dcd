"""The relay: brings what the store holds to a transport that cannot read the store itself.

It follows the store behind the horizon from its checkpoint, publishes, and moves the checkpoint once
everything up to it has arrived: each event is published at least once, in position order. Several batches
are on their way at a time; a transport that takes no more holds the relay up. One relay is active at a
time; another process stands by for its lease. Appending never publishes: there is no dual write to lose.

An event that the transport refuses for good, or whose payload cannot be read, is parked with its aggregate
among the dead letters of the group `relay` and reported; the other aggregates flow on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from eventsourcing.dead_letters import DeadLetter, park, parked_aggregates
from eventsourcing.errors import HandlerError
from eventsourcing.events import RecordedEvent
from eventsourcing.metrics import instruments
from eventsourcing.query import EventQuery
from eventsourcing.storage.base import CHECKPOINTS, Storage
from eventsourcing.supervision import lead
from eventsourcing.tail import Slice, follow
from eventsourcing.transport.base import Receipt, Refused, Transport

_log = logging.getLogger(__name__)

RELAY = "relay"
"""The name of the relay's dead letters, and of its checkpoint behind `relay/`."""

BATCH, IN_FLIGHT = 1000, 4

_KEY = f"relay/{RELAY}"


class Relay:
    """Store → transport, from a checkpoint."""

    def __init__(self, storage: Storage, transport: Transport) -> None:
        self._storage, self._transport = storage, transport
        self._parked: set[str] = set()

    async def run(self) -> None:
        """Relay until cancelled; after a fault the relay resumes at its checkpoint."""
        await lead(self._storage, _KEY, self._relay)

    async def _relay(self) -> None:
        self._parked = await parked_aggregates(self._storage, RELAY)
        sent: asyncio.Queue[_Sent] = asyncio.Queue(maxsize=IN_FLIGHT)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._send(sent))
                both.create_task(self._acknowledge(sent))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _send(self, sent: asyncio.Queue[_Sent]) -> None:
        after = await relay_position(self._storage)
        pieces = follow(self._storage, EventQuery(), after=after, batch_size=BATCH, past_faults=True)
        async for piece in pieces:
            waiting = [event for event in piece.events if event.aggregate_id in self._parked]
            others = [event for event in piece.events if event.aggregate_id not in self._parked]
            unreadable = [event for event in others if event.position in piece.faults]
            self._parked |= {event.aggregate_id for event in unreadable}
            flowing = [event for event in others if event.position not in piece.faults]
            receipt = await self._transport.publish(flowing)
            await sent.put(_Sent(piece, receipt, waiting, unreadable))

    async def _acknowledge(self, sent: asyncio.Queue[_Sent]) -> None:
        while True:
            one = await sent.get()
            refused = list(await one.receipt.wait())
            refused += [Refused(event, str(one.piece.faults[event.position])) for event in one.unreadable]
            published = instruments().published
            published.labels("published").inc(len(one.piece.events) - len(one.waiting) - len(refused))
            published.labels("refused").inc(len(refused))
            letters = [DeadLetter(event) for event in one.waiting]
            for refusal in refused:
                event = refusal.event
                _log.error(
                    "event %s cannot be published, and its aggregate is parked: %s",
                    event.event_id,
                    refusal.reason,
                )
                failure = HandlerError(event.event_id, handler=RELAY, attempts=1, reason=refusal.reason)
                letters.append(DeadLetter(event, failure))
                self._parked.add(event.aggregate_id)
            async with self._storage.transaction() as transaction:
                await park(transaction, RELAY, letters)
                await transaction.put(CHECKPOINTS, _KEY, {"position": one.piece.position})


@dataclass(frozen=True, slots=True)
class _Sent:
    """A slice on its way, those of its events that wait behind a refused one, and those that nobody can
    read, so that they are as good as refused."""

    piece: Slice
    receipt: Receipt
    waiting: Sequence[RecordedEvent]
    unreadable: Sequence[RecordedEvent]


async def relay_position(storage: Storage) -> int:
    """Up to where events are published; 0 before the first."""
    async with storage.transaction() as transaction:
        checkpoint = await transaction.get(CHECKPOINTS, _KEY)
    return checkpoint["position"] if checkpoint else 0
