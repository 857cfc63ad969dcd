"""Pure folds: how events become state. Live views, rebuilds, replays and snapshots all call these.

A fold has a key for each event (None: not its concern), an initial state, and `apply`, which changes
the state it is given. States are plain JSON values. A field is set by the event with the highest
position, and lists are sorted by position, so that the order between aggregates does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from eventsourcing.canonical import decode, encode
from eventsourcing.events import BaseEvent, EventType, RecordedEvent

State = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Counted:
    """The types (None: all) whose events a fold takes by their number alone: such events differ for it in
    nothing but type, aggregate type and latest timestamp, and with `field` in their correlation and in
    that field of their payload."""

    types: frozenset[str] | None = None
    field: str | None = None


class Fold(Protocol):
    """One pure fold. `version` grows whenever the same events would give another state; `types` are those
    that can concern it (None: all)."""

    name: str
    version: int
    types: frozenset[str] | None

    def key(self, event: BaseEvent) -> str | None:
        """The key of the state that the event belongs to; None when the fold ignores it."""

    def initial(self) -> State:
        """The state before any event."""

    def apply(self, state: State, event: BaseEvent) -> None:
        """Change the state by one event."""


class DurableFold(Fold, Protocol):
    """A fold behind a read model: `counted` says what it takes by number alone (None: nothing)."""

    counted: Counted | None

    def apply(self, state: State, event: BaseEvent, times: int = 1) -> None:
        """Change the state by one event; by `times` events that this one stands for, if it is counted."""


def position_of(event: BaseEvent) -> int:
    """Where the event stands in the global order; a draft stands at 0, before everything recorded."""
    return event.position if isinstance(event, RecordedEvent) else 0


class EventStatisticsFold:
    """How many events there are, by type and by aggregate type, and the latest timestamp."""

    name = "event-statistics"
    version = 1
    types: frozenset[str] | None = None
    counted: Counted | None = Counted()

    def key(self, event: BaseEvent) -> str | None:  # noqa: ARG002 - every event counts
        return "all"

    def initial(self) -> State:
        return {
            "total_events": 0,
            "events_by_type": {},
            "events_by_aggregate_type": {},
            "latest_event_timestamp": None,
        }

    def apply(self, state: State, event: BaseEvent, times: int = 1) -> None:
        state["total_events"] += times
        _count(state["events_by_type"], str(event.event_type), times)
        _count(state["events_by_aggregate_type"], event.aggregate_type, times)
        latest = state["latest_event_timestamp"]
        if latest is None or event.timestamp > datetime.fromisoformat(latest):
            state["latest_event_timestamp"] = decode(encode(event.timestamp))


class MigratedRecordsFold:
    """The users or admins that were migrated and not taken back, by aggregate_id."""

    version = 1
    counted: Counted | None = None

    def __init__(self, kind: str, migrated: EventType, rolled_back: EventType) -> None:
        self.name = f"{kind}-migrations"
        self._migrated, self._rolled_back = migrated, rolled_back
        self.types: frozenset[str] | None = frozenset((migrated, rolled_back))

    def key(self, event: BaseEvent) -> str | None:
        return event.aggregate_id if event.event_type in (self._migrated, self._rolled_back) else None

    def initial(self) -> State:
        return {}

    def apply(self, state: State, event: BaseEvent, times: int = 1) -> None:  # noqa: ARG002 - nothing is counted
        state.clear()
        if event.event_type == self._migrated:
            data = event.data
            state.update(
                {name: data.get(name) for name in ("username", "migrated_at", "source_data", "target_data")}
            )


USER_MIGRATIONS = MigratedRecordsFold("user", EventType.USER_MIGRATED, EventType.USER_ROLLED_BACK)
ADMIN_MIGRATIONS = MigratedRecordsFold("admin", EventType.ADMIN_MIGRATED, EventType.ADMIN_ROLLED_BACK)
EVENT_STATISTICS = EventStatisticsFold()


def fold_events(fold: Fold, events: Iterable[BaseEvent]) -> dict[str, State]:
    """The states of all keys after these events."""
    states: dict[str, State] = {}
    for event in events:
        key = fold.key(event)
        if key is not None:
            fold.apply(states.setdefault(key, fold.initial()), event)
    return states


def _count(counts: dict[str, int], name: str, times: int) -> None:
    counts[name] = counts.get(name, 0) + times
