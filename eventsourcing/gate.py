"""The order gate: restores the order within each aggregate when its events come by several ways.

An event is let through once the newest version that the consumer must see before it was let through; what
is at or below that is a repetition. Each aggregate has its own stream in the gate; they do not wait for
each other. The gate decides and remembers; it calls nobody.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from eventsourcing.errors import HandlerError
from eventsourcing.events import BaseEvent


@dataclass(slots=True)
class Arrival:
    """An event at the gate.

    `predecessor` is the version that must go before it, `partition` its aggregate's place in any topic,
    `origin` where it came from (None: the store), `fault` why nobody can take it.
    """

    key: str
    version: int
    event: BaseEvent
    partition: int
    predecessor: int = 0
    origin: object | None = None
    fault: HandlerError | None = None


@dataclass(slots=True)
class Stream:
    """One aggregate: what was let through, what waits for its predecessors, who is at work on it."""

    seen: int
    parked: bool
    partition: int
    waiting: dict[int, Arrival] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    busy: bool = False
    unsettled: int = 0


class OrderGate:
    """Streams by key. Idle ones beyond `size` are forgotten, those used last kept."""

    def __init__(self, *, size: int = 50_000) -> None:
        self._size = size
        self._streams: OrderedDict[str, Stream] = OrderedDict()
        self._stuck: dict[str, float] = {}

    def __getitem__(self, key: str) -> Stream:
        return self._streams[key]

    def unknown(self, keys: Iterable[str]) -> list[str]:
        """Which of these keys have no stream yet."""
        return [key for key in dict.fromkeys(keys) if key not in self._streams]

    def open(self, key: str, *, seen: int, parked: bool, partition: int) -> None:
        """Begin a stream: `seen` is the version up to which everything is done."""
        self._streams[key] = Stream(seen, parked, partition)

    def offer(self, arrival: Arrival) -> bool:
        """Take an event in; False for a repetition, which nobody needs to see."""
        stream = self._streams[arrival.key]
        if arrival.version <= stream.seen or arrival.version in stream.waiting:
            return False
        stream.waiting[arrival.version] = arrival
        heapq.heappush(stream.order, arrival.version)
        return True

    def skip(self, arrival: Arrival) -> None:
        """An event was done before the gate was there: what comes after it need not wait for it."""
        stream = self._streams[arrival.key]
        stream.seen = max(stream.seen, arrival.version)

    def take(self, key: str, now: float) -> list[Arrival]:
        """What may go through now, in order; the stream has seen it then."""
        stream = self._streams[key]
        self._streams.move_to_end(key)
        run: list[Arrival] = []
        while stream.order and stream.waiting[stream.order[0]].predecessor <= stream.seen:
            arrival = stream.waiting.pop(heapq.heappop(stream.order))
            stream.seen = arrival.version
            run.append(arrival)
        stream.unsettled += len(run)
        if run or not stream.order:
            self._stuck.pop(key, None)
        if stream.order:
            self._stuck.setdefault(key, now)
        return run

    def settle(self, key: str) -> None:
        """One event of a stream is done for good. The stream may have ended meanwhile."""
        if key in self._streams:
            self._streams[key].unsettled -= 1

    def release(self, key: str) -> bool:
        """Nobody works on a stream any more; False when it has ended meanwhile."""
        if key in self._streams:
            self._streams[key].busy = False
        return key in self._streams

    def stuck(self, since: float) -> list[str]:
        """The streams where nothing could go through since that time."""
        return [key for key, at in self._stuck.items() if at <= since and not self._streams[key].busy]

    def forget(self, partitions: set[int]) -> list[Arrival]:
        """End the streams of partitions; return what waited in them."""
        ended = [key for key, stream in self._streams.items() if stream.partition in partitions]
        for key in ended:
            self._stuck.pop(key, None)
        return [arrival for key in ended for arrival in self._streams.pop(key).waiting.values()]

    def trim(self) -> None:
        """Forget idle streams beyond the size."""
        excess = len(self._streams) - self._size
        if excess <= 0:
            return
        idle = (key for key, stream in self._streams.items() if _idle(stream))
        for key in list(islice(idle, excess)):
            del self._streams[key]


def newest_predecessor(predecessors: Mapping[str, int], wanted: Callable[[str], bool]) -> int:
    """The version that a consumer of the wanted types must see before an event; 0 for none."""
    return max((version for kind, version in predecessors.items() if wanted(kind)), default=0)


def _idle(stream: Stream) -> bool:
    return not (stream.waiting or stream.busy or stream.unsettled)
