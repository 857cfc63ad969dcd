"""What of each assigned partition is in hand: how much, and up to where everything is done.

Only the contiguous done prefix is committed: an event held back holds its partition's offset back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from confluent_kafka import Message

Place = tuple[str, int]
"""Topic and partition."""


_AHEAD = 100
"""How many messages may be done behind one that is not, for each that may be in hand."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A message and where it stands."""

    place: Place
    offset: int
    message: Message

    @property
    def size(self) -> int:
        """Bytes of the payload."""
        return len(self.message)


@dataclass(slots=True)
class _Partition:
    order: deque[int] = field(default_factory=deque)
    done: set[int] = field(default_factory=set)
    open: int = 0
    bytes: int = 0
    ready: int | None = None
    paused: bool = False


class Offsets:
    """The partitions assigned now. `most` messages or `most_bytes` in hand are enough for all of them,
    but each may have `least` messages."""

    def __init__(self, *, most: int, most_bytes: int, least: int = 1) -> None:
        self._most, self._most_bytes, self._least = most, most_bytes, least
        self._partitions: dict[Place, _Partition] = {}

    def assign(self, places: list[Place]) -> None:
        """Begin to keep books on partitions."""
        self._partitions.update((place, _Partition()) for place in places)

    def forget(self, places: list[Place]) -> None:
        """Close the books on partitions; whatever was in hand counts no more."""
        for place in places:
            self._partitions.pop(place, None)

    def assigned(self, place: Place) -> bool:
        """Whether the partition is ours."""
        return place in self._partitions

    def add(self, origin: Origin) -> None:
        """A message is in hand. Those of one partition are added by offset."""
        partition = self._partitions[origin.place]
        partition.order.append(origin.offset)
        partition.open += 1
        partition.bytes += origin.size

    def done(self, origin: Origin) -> None:
        """Nothing is left to do for a message, whose partition may be gone meanwhile."""
        partition = self._partitions.get(origin.place)
        if partition is None:
            return
        partition.done.add(origin.offset)
        partition.open -= 1
        partition.bytes -= origin.size
        while partition.order and partition.order[0] in partition.done:
            first = partition.order.popleft()
            partition.done.discard(first)
            partition.ready = first + 1

    def committable(self, places: list[Place] | None = None) -> dict[Place, int]:
        """The offsets to commit, each once: the next message of each partition that went ahead."""
        found: dict[Place, int] = {}
        for place in self._partitions if places is None else places:
            partition = self._partitions.get(place)
            if partition is not None and partition.ready is not None:
                found[place], partition.ready = partition.ready, None
        return found

    def pressure(self) -> tuple[list[Place], list[Place]]:
        """Which partitions to pause, having enough in hand, and which to resume at half of it.

        Each partition has its share: a reader of several topics needs the slow ones to go on while
        the fast ones wait, or it would wait for ever for what comes before. What is done already behind
        one that takes long counts little: it would be read again after a crash, and known.
        """
        share = max(self._most // max(len(self._partitions), 1), self._least)
        share_bytes = max(self._most_bytes // max(len(self._partitions), 1), 1)
        pause, resume = [], []
        for place, partition in self._partitions.items():
            ahead = len(partition.order) / (share * _AHEAD)
            full = max(partition.open / share, partition.bytes / share_bytes, ahead)
            if full >= 1 and not partition.paused:
                partition.paused = True
                pause.append(place)
            elif full <= 0.5 and partition.paused:
                partition.paused = False
                resume.append(place)
        return pause, resume
