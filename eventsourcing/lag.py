"""How far behind each durable consumer is: read models, consumer groups, the relay."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from eventsourcing.query import EventQuery
from eventsourcing.readmodels import READ_MODELS
from eventsourcing.storage.base import CHECKPOINTS, Storage

Kind = Literal["read-model", "group", "relay"]
KAFKA_GROUP = "kafka-group/"
"""Behind which a group's checkpoint says where it began on Kafka."""

KINDS: tuple[Kind, ...] = ("read-model", "group", "relay")


@dataclass(frozen=True, slots=True)
class Lag:
    """The state of one consumer. `events` counts positions up to the head, so it is an upper bound: a
    position whose append was undone has no event. `seconds` is the age of the oldest event not yet
    handled, 0 when there is none; `in_hand` counts the aggregates under way below `position`."""

    kind: Kind
    name: str
    position: int
    events: int
    seconds: float
    in_hand: int = 0
    circuit: str | None = None


async def lags(storage: Storage) -> list[Lag]:
    """The lag of every consumer that has a checkpoint, and of every read model, by kind and name.

    The cost grows with the number of consumers alone.
    """
    head = await storage.head()
    after = None
    async with storage.transaction(snapshot=True) as transaction:
        live = {(await model.live_in(transaction)).checkpoint_key for model in READ_MODELS}
        checkpoints: dict[str, Any] = {key: {"position": 0} for key in live}
        while rows := await transaction.scan(CHECKPOINTS, after=after):
            checkpoints.update(rows)
            after = rows[-1][0]
    found = []
    for key, checkpoint in sorted(checkpoints.items()):
        kind, _, name = key.partition("/")
        if kind in KINDS and (kind != "read-model" or key in live):  # what is beside need not keep up
            found.append(await _lag(storage, kind, name, checkpoint, head))
    return sorted(found, key=lambda lag: (KINDS.index(lag.kind), lag.name))


async def _lag(storage: Storage, kind: Kind, name: str, checkpoint: dict[str, Any], head: int) -> Lag:
    position, held = checkpoint["position"], checkpoint.get("held", {})
    done = min([position, *(first - 1 for first in held.values())])
    return Lag(
        kind=kind,
        name=name,
        position=position,
        events=max(0, head - position),
        seconds=await _age_behind(storage, done) if done < head else 0.0,
        in_hand=len(held),
        circuit=checkpoint.get("circuit"),
    )


async def _age_behind(storage: Storage, position: int) -> float:
    """How long ago the first event behind a position was stored."""
    async for batch in storage.read(EventQuery(after_position=position, limit=1), batch_size=1):
        return max(0.0, (datetime.now(UTC) - batch[0].recorded_at).total_seconds())
    return 0.0
