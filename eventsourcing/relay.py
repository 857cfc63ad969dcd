"""The relay: brings what the store holds to a transport that cannot read the store itself.

It follows the store behind the horizon from its checkpoint, publishes, then moves the checkpoint: each
event is published at least once, in position order. One relay is active at a time; another process
stands by for its lease. Appending never publishes, so there is no dual write to lose.
"""

from __future__ import annotations

from eventsourcing.query import EventQuery
from eventsourcing.storage.base import CHECKPOINTS, Storage
from eventsourcing.supervision import lead
from eventsourcing.tail import follow
from eventsourcing.transport.base import Transport


class Relay:
    """Store → transport, from a checkpoint named after the relay."""

    def __init__(self, storage: Storage, transport: Transport, *, name: str = "relay") -> None:
        self._storage, self._transport = storage, transport
        self._key = f"relay/{name}"

    async def run(self) -> None:
        """Relay until cancelled; after a fault the relay resumes at its checkpoint."""
        await lead(self._storage, self._key, self._relay)

    async def position(self) -> int:
        """Up to where events are published."""
        async with self._storage.transaction() as transaction:
            checkpoint = await transaction.get(CHECKPOINTS, self._key)
        return checkpoint["position"] if checkpoint else 0

    async def _relay(self) -> None:
        async for piece in follow(self._storage, EventQuery(), after=await self.position()):
            await self._transport.publish(piece.events)
            async with self._storage.transaction() as transaction:
                await transaction.put(CHECKPOINTS, self._key, {"position": piece.position})
