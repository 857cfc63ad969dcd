"""How far behind each durable consumer is: read models, consumer groups, the relay."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from eventsourcing.dead_letters import count_parked
from eventsourcing.query import EventQuery
from eventsourcing.readmodels import READ_MODELS
from eventsourcing.storage.base import CHECKPOINTS, StateStorage, Storage

Kind = Literal["read-model", "group", "relay"]
KAFKA_GROUP = "kafka-group/"
"""Behind which a group's checkpoint says where it began on Kafka."""

KINDS: tuple[Kind, ...] = ("read-model", "group", "relay")

STALLED_S = 60.0
"""From which age on the oldest event that a consumer has not done is a sign that nobody works on it."""

State = Literal["caught-up", "behind", "stalled", "paused"]


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

    @property
    def is_stalled(self) -> bool:
        """Whether nobody seems to work on it."""
        return self.seconds > STALLED_S

    @property
    def state(self) -> State:
        """How it gets on; `paused` while its circuit is not closed: what its handlers need is away."""
        if self.circuit not in (None, "closed"):
            return "paused"
        if self.is_stalled:
            return "stalled"
        return "behind" if self.seconds else "caught-up"


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


async def consumers(storage: Storage) -> list[dict[str, Any]]:
    """Every consumer with its lag, its state and how many aggregates wait behind its dead letters."""
    found = await lags(storage)
    async with storage.transaction() as transaction:
        return [
            {**asdict(lag), "state": lag.state, "parked": await count_parked(transaction, lag.name)}
            for lag in found
        ]


async def kafka_groups(storage: StateStorage) -> dict[str, int]:
    """The groups that have begun on Kafka, each with how many aggregates wait behind its dead letters."""
    async with storage.transaction() as transaction:
        rows = await transaction.scan(CHECKPOINTS, prefix=KAFKA_GROUP)
        groups = [key.removeprefix(KAFKA_GROUP) for key, _ in rows]
        return {group: await count_parked(transaction, group) for group in groups}


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
