"""What the tests over Kafka share: a fold that notices every repetition, and when a relay is level."""

from __future__ import annotations

from typing import Any

from eventsourcing import EventStore
from eventsourcing.events import BaseEvent
from eventsourcing.fold_handler import FoldHandler
from eventsourcing.folds import Counted
from eventsourcing.relay import relay_position
from tests.waiting import until


async def relayed(store: EventStore) -> None:
    """Wait until everything stored is published."""

    async def reached() -> bool:
        return await relay_position(store.storage) >= await store.horizon()

    await until(reached)


async def all_applied(fold: FoldHandler, aggregates: int, total: int) -> bool:
    """Whether a fold of versions has at least so many events of the orders numbered from 0."""
    states = [await fold.state_of(f"order-{number}") for number in range(aggregates)]
    return sum(len(state["versions"]) for state in states if state) >= total


class Versions:
    """A fold that keeps every version it was given: a repetition, a gap and a wrong order all show."""

    name = "versions"
    version = 1
    types: frozenset[str] | None = None
    counted: Counted | None = None

    def key(self, event: BaseEvent) -> str | None:
        return event.aggregate_id

    def initial(self) -> dict[str, Any]:
        return {"versions": []}

    def apply(self, state: dict[str, Any], event: BaseEvent, times: int = 1) -> None:  # noqa: ARG002 - never counted
        state["versions"].append(event.event_version)
