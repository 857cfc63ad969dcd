"""Process models against stored events: one subject, all subjects of a model, or what is new of them.

Events are read by position, each once. Walks are kept for the subjects seen last, at most so many; one that
comes up again is walked anew from its own streams. So memory does not grow with what is stored.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from tempfile import TemporaryFile
from typing import IO, Any

from eventsourcing.errors import NotFoundError
from eventsourcing.events import RecordedEvent
from eventsourcing.process_machine import Violation, Walk
from eventsourcing.process_models import ProcessModel
from eventsourcing.query import EventQuery
from eventsourcing.store import EventStore

WALKS_AT_MOST = 100_000
FIRST_VIOLATIONS = 1000
"""How many violations a summary names; all of them are counted."""


async def check_process(
    store: EventStore, model: ProcessModel, aggregate_id: str, *, now: datetime | None = None
) -> dict[str, Any]:
    """Check one subject, which must be where the process wants it at `now`, the moment of the call.

    {model, aggregate_id, is_valid, status: complete, open or broken, events, expected_next, violation}.
    Raises NotFoundError for an aggregate without events.
    """
    walk = await _walked(store, model, model.subject_of(aggregate_id))
    if not walk.events:
        raise NotFoundError("aggregate", aggregate_id)
    violation = walk.violation or walk.overdue(now or datetime.now(UTC))
    return {
        "model": model.name,
        "aggregate_id": walk.subject,
        "is_valid": violation is None,
        "status": "broken" if violation else walk.status,
        "events": walk.events,
        "expected_next": [] if violation else list(walk.machine.expected(walk.walked)),
        "violation": None if violation is None else violation.facts(),
    }


@dataclass
class ProcessSummary:
    """What became of the subjects of a model, up to a position."""

    model: str
    position: int = 0
    events: int = 0
    subjects: int = 0
    broken: int = 0
    violations: list[Violation] = field(default_factory=list)

    @property
    def is_valid(self) -> bool:
        """Whether no subject broke the model."""
        return not self.broken


async def check_processes(
    store: EventStore,
    model: ProcessModel,
    *,
    now: datetime | None = None,
    walks_at_most: int = WALKS_AT_MOST,
) -> ProcessSummary:
    """Check all subjects of a model, up to the horizon; `now` decides what is overdue."""
    horizon = await store.horizon()
    with Watcher(store, model, walks_at_most=walks_at_most) as watcher:
        summary = ProcessSummary(model.name, horizon)
        async for violation in watcher.violations(after=0, to=horizon):
            _count(summary, violation)
        async for violation in watcher.overdue(now or datetime.now(UTC)):
            _count(summary, violation)
        summary.events, summary.subjects = watcher.events, watcher.subjects
    return summary


def _count(summary: ProcessSummary, violation: Violation) -> None:
    summary.broken += 1
    if len(summary.violations) < FIRST_VIOLATIONS:
        summary.violations.append(violation)


class Watcher:
    """Follows all subjects of a model. Use it as a context: what it forgets is noted in a file."""

    def __init__(self, store: EventStore, model: ProcessModel, *, walks_at_most: int = WALKS_AT_MOST) -> None:
        self.events = self.subjects = 0
        self._store, self._model, self._most = store, model, walks_at_most
        self._walks: OrderedDict[str, Walk] = OrderedDict()
        self._forgotten: IO[bytes] = TemporaryFile()  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._forgotten.close()

    async def violations(self, *, after: int, to: int) -> AsyncIterator[Violation]:
        """The first violation of each subject that lies between two positions, in their order."""
        types = (*self._model.aggregate_types, *self._model.beside)
        query = EventQuery(aggregate_types=types, after_position=after, to_position=to)
        async for event in self._store.read(query):
            self.events += 1
            walk = await self._walk_before(event)
            known = walk.within and walk.violation is not None
            counted = walk.within
            walk.take(event)
            self.subjects += walk.within and not counted
            if walk.within and walk.violation is not None and not known:
                yield walk.violation

    def deadlines(self) -> dict[str, datetime | None]:
        """By when each subject kept in mind must go on, as far as its events are taken."""
        return {subject: walk.deadline() if walk.within else None for subject, walk in self._walks.items()}

    async def overdue(self, now: datetime) -> AsyncIterator[Violation]:
        """The subjects met that had to go on before a moment, and did not."""
        self._forgotten.seek(0)
        told: set[str] = set()
        for line in self._forgotten:
            subject = bytes.fromhex(line.decode().strip()).decode()
            if subject in self._walks or subject in told:
                continue
            walk = await _walked(self._store, self._model, subject)
            if (late := walk.overdue(now)) is not None and walk.within:
                told.add(subject)
                yield late
        for walk in self._walks.values():
            if (late := walk.overdue(now)) is not None and walk.within:
                yield late

    async def _walk_before(self, event: RecordedEvent) -> Walk:
        """The walk of an event's subject as it was before the event."""
        subject = self._model.subject_of(event.aggregate_id)
        walk = self._walks.get(subject)
        if walk is not None:
            self._walks.move_to_end(subject)
            return walk
        if event.event_version == 1 and not self._model.side_streams:
            walk = Walk(self._model, subject)
        else:
            walk = await _walked(self._store, self._model, subject, to_position=event.position - 1)
        self._walks[subject] = walk
        if len(self._walks) > self._most:
            self._forget(*self._walks.popitem(last=False))
        return walk

    def _forget(self, subject: str, walk: Walk) -> None:
        timed = self._model.limit is not None or walk.machine.patience(walk.walked) is not None
        if timed and walk.status == "open":
            self._forgotten.write(subject.encode().hex().encode() + b"\n")


async def _walked(
    store: EventStore, model: ProcessModel, subject: str, *, to_position: int | None = None
) -> Walk:
    """A subject's walk through its streams, up to a position."""
    walk = Walk(model, subject)
    if to_position is not None and to_position < 1:
        return walk
    streams = [_events(store, subject, to_position)]
    for name in model.side_streams:
        streams += await _side(store, f"{subject}:{name}", to_position)
    heads = {number: event for number, stream in enumerate(streams) if (event := await anext(stream, None))}
    while heads:
        number = min(heads, key=lambda each: heads[each].position)
        walk.take(heads[number])
        following = await anext(streams[number], None)
        if following is None:
            del heads[number]
        else:
            heads[number] = following
    return walk


async def _side(store: EventStore, name: str, to_position: int | None) -> list[AsyncIterator[RecordedEvent]]:
    """A side stream, or those of a numbered name that have events."""
    if not name.endswith("{n}"):
        return [_events(store, name, to_position)]
    found: list[AsyncIterator[RecordedEvent]] = []
    while True:
        numbered = re.sub(r"\{n\}$", str(len(found) + 1), name)
        first = EventQuery(aggregate_id=numbered, to_position=to_position, limit=1)
        if not [event async for event in store.read(first)]:
            return found
        found.append(_events(store, numbered, to_position))


def _events(store: EventStore, aggregate_id: str, to_position: int | None) -> AsyncIterator[RecordedEvent]:
    return store.read(EventQuery(aggregate_id=aggregate_id, to_position=to_position))
