"""The machine of a process: which types may come next, after any events, in time that history does not cost.

A process becomes an automaton whose moves are event types with their time limits. A walk is the set of its
states that the events so far allow, kept as one number: however many subjects, each costs a few words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Literal
from uuid import UUID

from eventsourcing.events import RecordedEvent
from eventsourcing.process_models import Either, Part, ProcessModel, Repeated, Sequence, Stages, Step

States = frozenset[int]


@dataclass(frozen=True, slots=True)
class Violation:
    """The first event of a subject that broke the model, or that did not come in time (`overdue`).

    `expected` are the types that could have come; empty at the end of the process. Of what is overdue
    `actual` is None, and the event is the last one before.
    """

    model: str
    subject: str
    reason: Literal["unexpected", "late", "overdue"]
    expected: tuple[str, ...]
    actual: str | None
    aggregate_id: str
    event_version: int
    position: int
    event_id: UUID

    def facts(self) -> dict[str, Any]:
        """The violation as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        wanted = " or ".join(self.expected) or "nothing more"
        found = {"unexpected": f"found {self.actual}", "late": f"{self.actual} came too late"}
        what = found.get(self.reason, "it has not come in time")
        return (
            f"{self.subject!r} broke {self.model!r} at position {self.position} "
            f"({self.aggregate_id!r}, version {self.event_version}): expected {wanted}; {what}"
        )


class Machine:
    """The automaton of one process."""

    def __init__(self, process: Part) -> None:
        self._moves: list[list[tuple[str, timedelta | None, int]]] = []
        self._free: list[list[int]] = []
        self._sets: dict[States, int] = {}
        self._known: list[States] = []
        self._untimed: dict[tuple[int, str], int | None] = {}
        entry = self._state()
        self._end = self._add(process, entry)
        self.start = self._number({entry})

    def next(self, walked: int, event_type: str, elapsed: timedelta) -> int | Literal["unexpected", "late"]:
        """The walk after one more event, so long after the one before; or what is wrong with it."""
        key = (walked, event_type)
        if key in self._untimed:
            known = self._untimed[key]
            return "unexpected" if known is None else known
        moves = [
            move for state in self._known[walked] for move in self._moves[state] if move[0] == event_type
        ]
        timed = any(limit is not None for _, limit, _ in moves)
        targets = {target for _, limit, target in moves if limit is None or elapsed <= limit}
        if not targets and timed:
            return "late"
        result = self._number(targets) if targets else None
        if not timed:
            self._untimed[key] = result
        return "unexpected" if result is None else result

    def expected(self, walked: int) -> tuple[str, ...]:
        """The types that may come next."""
        return tuple(sorted({move[0] for state in self._known[walked] for move in self._moves[state]}))

    def may_end(self, walked: int) -> bool:
        """Whether the process may be over."""
        return self._end in self._known[walked]

    def patience(self, walked: int) -> timedelta | None:
        """How long after its last event the process must go on; None when it may end or take its time."""
        limits = [move[1] for state in self._known[walked] for move in self._moves[state]]
        bounded = [limit for limit in limits if limit is not None]
        return max(bounded) if bounded and len(bounded) == len(limits) and not self.may_end(walked) else None

    @property
    def is_timed(self) -> bool:
        """Whether any event has to come within a time."""
        return any(limit is not None for moves in self._moves for _, limit, _ in moves)

    def _state(self) -> int:
        self._moves.append([])
        self._free.append([])
        return len(self._moves) - 1

    def _joined(self, exits: Iterable[int]) -> int:
        joined = self._state()
        for state in exits:
            self._free[state].append(joined)
        return joined

    def _add(self, part: Part, entry: int) -> int:
        """Build a part from a state on; return the state behind it, which nothing of the part leaves."""
        match part:
            case Step():
                behind = self._state()
                self._moves[entry].append((part.event_type, part.within, behind))
                return behind
            case Sequence():
                for inner in part.parts:
                    entry = self._add(inner, entry)
                return self._joined([entry])
            case Either():
                return self._joined([self._add(inner, self._joined([entry])) for inner in part.parts])
            case Repeated():
                return self._repeated(part, entry)
            case Stages():
                return self._stages(part, entry)

    def _repeated(self, part: Repeated, entry: int) -> int:
        here = self._joined([entry])
        for _ in range(part.at_least):
            here = self._joined([self._add(part.part, here)])
        if part.at_most is None:
            self._free[self._add(part.part, here)].append(here)
            return self._joined([here])
        exits = [here]
        for _ in range(part.at_most - part.at_least):
            here = self._joined([self._add(part.part, here)])
            exits.append(here)
        return self._joined(exits)

    def _stages(self, part: Stages, entry: int) -> int:
        borders = [self._joined([entry])]
        for inner in part.parts:
            borders.append(self._joined([self._add(inner, borders[-1])]))
        exits = [borders[-1]]
        for number, border in enumerate(borders):
            if part.interrupted_by is not None:
                self._free[self._add(part.interrupted_by, border)].append(border)
            if part.taken_back_by is not None:
                self._free[self._add(part.taken_back_by, border)] += borders[: number + 1]
            if part.given_up_by is not None:
                exits.append(self._add(part.given_up_by, border))
        return self._joined(exits)

    def _number(self, states: Iterable[int]) -> int:
        """The number of a set of states and of all that can be reached from it for free."""
        reached, open_ = set(states), list(states)
        while open_:
            for state in self._free[open_.pop()]:
                if state not in reached:
                    reached.add(state)
                    open_.append(state)
        found = frozenset(reached)
        if found not in self._sets:
            self._sets[found] = len(self._known)
            self._known.append(found)
        return self._sets[found]


@lru_cache(maxsize=64)
def machine_of(model: ProcessModel) -> Machine:
    """The machine of a model's process, made once."""
    return Machine(model.process)


class Walk:
    """One subject on its way through a process. After its first violation it stands still."""

    __slots__ = ("events", "first_at", "last", "machine", "model", "subject", "violation", "walked", "within")

    def __init__(self, model: ProcessModel, subject: str) -> None:
        self.model, self.subject, self.machine = model, subject, machine_of(model)
        self.walked, self.events = self.machine.start, 0
        self.first_at: datetime | None = None
        self.last: tuple[str, int, int, UUID, datetime] | None = None
        self.within = False
        """Whether an event has shown the stream to be one of the model's subjects."""
        self.violation: Violation | None = None

    def take(self, event: RecordedEvent) -> None:
        """Go on by one event."""
        self.within = self.within or event.aggregate_type in self.model.aggregate_types
        self.events += 1
        if self.violation is not None or event.event_type in self.model.ignored:
            return
        self.first_at = self.first_at or event.timestamp
        elapsed = event.timestamp - (self.last[-1] if self.last else event.timestamp)
        result = self.machine.next(self.walked, event.event_type, elapsed)
        limit = self.model.limit
        if isinstance(result, int) and limit is not None and event.timestamp - self.first_at > limit:
            result = "late"
        place = (event.aggregate_id, event.event_version, event.position, event.event_id)
        if isinstance(result, int):
            self.walked, self.last = result, (*place, event.timestamp)
        else:
            self.violation = self._violated(result, str(event.event_type), *place)

    def deadline(self) -> datetime | None:
        """The moment by which the process must go on; None when it may end, take its time, or is broken."""
        if self.last is None or self.first_at is None or self.violation is not None:
            return None
        patience, limit = self.machine.patience(self.walked), self.model.limit
        moments = [] if patience is None else [self.last[-1] + patience]
        if limit is not None and not self.machine.may_end(self.walked):
            moments.append(self.first_at + limit)
        return min(moments, default=None)

    def overdue(self, now: datetime) -> Violation | None:
        """What is missing at a moment, if the process had to go on before it."""
        deadline = self.deadline()
        if self.last is None or deadline is None or now <= deadline:
            return None
        return self._violated("overdue", None, *self.last[:-1])

    @property
    def status(self) -> Literal["broken", "complete", "open"]:
        """Whether the rules were broken, or the process may be over, or must go on."""
        if self.violation is not None:
            return "broken"
        return "complete" if self.events and self.machine.may_end(self.walked) else "open"

    def _violated(self, reason: Any, actual: str | None, *place: Any) -> Violation:
        expected = self.machine.expected(self.walked)
        return Violation(self.model.name, self.subject, reason, expected, actual, *place)
