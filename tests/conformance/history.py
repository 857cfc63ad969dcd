"""Judge a recorded history of writers and readers: a pure function, for every test of the global order.

The vocabulary is Jepsen's. A history holds what the store ended with, what it acknowledged to writers,
and what each reader was shown, in the order it was shown. A store that keeps its promises gives a
verdict without a fault, whatever the schedule was.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Entry:
    """An event, as far as order is concerned."""

    position: int
    event_id: UUID
    aggregate_id: str
    event_version: int
    event_type: str


def everything(_: Entry) -> bool:
    """The filter of a reader who reads all."""
    return True


@dataclass(slots=True)
class Reading:
    """What one reader was shown; `reached` is the position it knows itself to have read up to."""

    name: str
    wanted: Callable[[Entry], bool] = everything
    shown: list[Entry] = field(default_factory=list)
    reached: int = 0
    late: int = 0

    def take(self, entries: Iterable[Entry], upto: int) -> None:
        """Note a batch, and the position that the reader may now forget everything below."""
        for entry in entries:
            self.late += entry.position <= self.reached
            self.shown.append(entry)
        self.late += upto < self.reached
        self.reached = max(upto, self.reached)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many times each promise was broken; the first field says how much there was to judge."""

    events: int
    lost: int = 0
    """Acknowledged to its writer, and not stored."""
    missed: int = 0
    """Stored, wanted, at or below what the reader had reached, and never shown to it."""
    repeated: int = 0
    """Shown to one reader more than once."""
    phantom: int = 0
    """Shown, and not stored in the end: an append that was undone."""
    backwards: int = 0
    """Shown at or below a position already passed."""
    inverted: int = 0
    """Stored with a version order, within its aggregate, that is not the position order."""
    gaps: int = 0
    """Aggregates whose versions are not 1, 2, 3 …"""

    @property
    def sound(self) -> bool:
        """Whether every promise was kept."""
        return not (
            self.lost
            or self.missed
            or self.repeated
            or self.phantom
            or self.backwards
            or self.inverted
            or self.gaps
        )


def judge(stored: Sequence[Entry], acknowledged: set[UUID], readings: Sequence[Reading]) -> Verdict:
    """Judge readers against what the store ended with."""
    ids = {entry.event_id for entry in stored}
    inverted, gaps = _order_of_streams(stored)
    return Verdict(
        events=len(stored),
        lost=len(acknowledged - ids),
        missed=sum(_missed(stored, reading) for reading in readings),
        repeated=sum(_repeated(reading) for reading in readings),
        phantom=sum(entry.event_id not in ids for reading in readings for entry in reading.shown),
        backwards=sum(reading.late + _steps_back(reading.shown) for reading in readings),
        inverted=inverted,
        gaps=gaps,
    )


def _missed(stored: Sequence[Entry], reading: Reading) -> int:
    shown = {entry.event_id for entry in reading.shown}
    return sum(
        entry.position <= reading.reached and reading.wanted(entry) and entry.event_id not in shown
        for entry in stored
    )


def _repeated(reading: Reading) -> int:
    counts = Counter(entry.event_id for entry in reading.shown)
    return sum(count - 1 for count in counts.values())


def _steps_back(shown: Sequence[Entry]) -> int:
    return sum(after.position <= before.position for before, after in pairwise(shown))


def _order_of_streams(stored: Sequence[Entry]) -> tuple[int, int]:
    streams: dict[str, list[int]] = defaultdict(list)
    for entry in sorted(stored, key=lambda entry: entry.position):
        streams[entry.aggregate_id].append(entry.event_version)
    inverted = sum(after <= before for versions in streams.values() for before, after in pairwise(versions))
    gaps = sum(sorted(versions) != list(range(1, len(versions) + 1)) for versions in streams.values())
    return inverted, gaps
