"""What came before an event in its aggregate: the last version of each type, for whoever restores order.

With topics by event type, a consumer of some types sees only some versions. From the predecessors it
knows, for any set of types, which version must be applied before this one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache

from eventsourcing.events import RecordedEvent
from eventsourcing.storage.base import EventStorage

CACHED_AGGREGATES = 50_000

Versions = Mapping[str, int]

_NOTHING: tuple[int, Versions] = (0, {})


@lru_cache(1024)
def _only(event_type: str, version: int) -> tuple[int, Versions]:
    """What is known after an aggregate's first event: shared, for most aggregates have no second one."""
    return version, {str(event_type): version}


class Predecessors:
    """The last version of each type by aggregate; those used last are remembered."""

    def __init__(self, storage: EventStorage, *, size: int = CACHED_AGGREGATES) -> None:
        self._storage, self._size = storage, size
        self._known: OrderedDict[str, tuple[int, Versions]] = OrderedDict()

    async def of(self, events: Sequence[RecordedEvent]) -> list[Versions]:
        """The predecessors of each event, empty for an aggregate's first.

        `events` hold every event of their aggregates between their first and their last one here.
        """
        await self._look_up(events)
        found: list[Versions] = []
        for event in events:
            _, versions = self._known.pop(event.aggregate_id, _NOTHING)
            found.append(versions)
            self._known[event.aggregate_id] = (
                (event.event_version, {**versions, str(event.event_type): event.event_version})
                if versions
                else _only(event.event_type, event.event_version)
            )
        while len(self._known) > self._size:
            self._known.popitem(last=False)
        return found

    async def _look_up(self, events: Sequence[RecordedEvent]) -> None:
        """Learn about aggregates that go on where we do not know them, by one question."""
        first: dict[str, int] = {}
        for event in events:
            first.setdefault(event.aggregate_id, event.event_version)
        unknown = {
            aggregate_id: version
            for aggregate_id, version in first.items()
            if self._known.get(aggregate_id, _NOTHING)[0] != version - 1
        }
        for aggregate_id in unknown:
            self._known.pop(aggregate_id, None)
        wanted = {aggregate_id: version for aggregate_id, version in unknown.items() if version > 1}
        if wanted:
            for aggregate_id, versions in (await self._storage.last_versions(wanted)).items():
                self._known[aggregate_id] = (wanted[aggregate_id] - 1, versions)
