"""The machine of a process against a checker so simple that it cannot hide a mistake."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventsourcing import EventType, NotFoundError, RecordedEvent
from eventsourcing.process_machine import Machine, Violation, Walk
from eventsourcing.process_models import (
    MIGRATION,
    STRAIGHT,
    Either,
    Part,
    ProcessModel,
    Repeated,
    Sequence,
    Stages,
    Step,
    either,
    optional,
    process_model,
    process_models,
    repeated,
    sequence,
    stages,
    within,
)

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
Told = tuple[str, int]
"""An event: its type and the seconds since the event before."""


class Naive:
    """Tries every way through a process, from every place, by its definition."""

    def __init__(self, told: list[Told]) -> None:
        self.told, self.ran_out = told, False

    def ends(self, part: Part, start: int) -> set[int]:
        """Where a part that begins at an event may end; notes whether it could go on past the last one."""
        match part:
            case Step():
                return self._step(part, start)
            case Sequence():
                places = {start}
                for inner in part.parts:
                    places = {end for place in places for end in self.ends(inner, place)}
                return places
            case Either():
                return {end for inner in part.parts for end in self.ends(inner, start)}
            case Repeated():
                return self._repeated(part, start)
            case Stages():
                return self._stages(part, start)

    def _step(self, part: Step, start: int) -> set[int]:
        if start == len(self.told):
            self.ran_out = True
            return set()
        event_type, elapsed = self.told[start]
        late = part.within is not None and elapsed > part.within.total_seconds()
        return {start + 1} if event_type == part.event_type and not late else set()

    def _repeated(self, part: Repeated, start: int) -> set[int]:
        ends, places, seen, count = set[int](), {start}, set[tuple[int, int]](), 0
        while places and count <= len(self.told) + part.at_least + 1:
            if count >= part.at_least:
                ends |= places
            if part.at_most is not None and count == part.at_most:
                break
            count += 1
            places = {end for place in places for end in self.ends(part.part, place)}
            places = {place for place in places if (place, min(count, part.at_least)) not in seen}
            seen |= {(place, min(count, part.at_least)) for place in places}
        return ends

    def _stages(self, part: Stages, start: int) -> set[int]:
        ends, seen, todo = set[int](), set[tuple[int, int]](), [(0, start)]
        while todo:
            border, place = todo.pop()
            if (border, place) in seen:
                continue
            seen.add((border, place))
            if border == len(part.parts):
                ends.add(place)
            else:
                todo += [(border + 1, end) for end in self.ends(part.parts[border], place)]
            if part.interrupted_by is not None:
                todo += [(border, end) for end in self.ends(part.interrupted_by, place)]
            if part.taken_back_by is not None:
                back = self.ends(part.taken_back_by, place)
                todo += [(earlier, end) for end in back for earlier in range(border + 1)]
            if part.given_up_by is not None:
                ends |= self.ends(part.given_up_by, place)
        return ends


def naive_verdict(process: Part, told: list[Told]) -> tuple[int | None, bool]:
    """The index of the first event that breaks a process, and whether it may end after the events."""
    for count in range(len(told) + 1):
        naive = Naive(told[:count])
        may_end = count in naive.ends(process, 0)
        if not may_end and not naive.ran_out:
            return count - 1, False
    return None, may_end


TYPES = "abc"
steps = st.builds(
    Step, st.sampled_from(TYPES), st.sampled_from([None, None, timedelta(seconds=1), timedelta(seconds=5)])
)


def _larger(parts: st.SearchStrategy[Part]) -> st.SearchStrategy[Part]:
    some = st.lists(parts, min_size=1, max_size=3).map(tuple)
    branch = st.none() | parts
    return (
        st.builds(Sequence, some)
        | st.builds(Either, some)
        | st.builds(Repeated, parts, st.integers(0, 2), st.none() | st.integers(2, 3))
        | st.builds(Stages, some, branch, branch, branch)
    )


processes = st.recursive(steps, _larger, max_leaves=7)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Part, list[Told]]:
    """A process and a history that mostly keeps to it: at random it would break within two events."""
    process: Part = draw(processes)
    machine, told = Machine(process), list[Told]()
    walked: Any = machine.start
    for _ in range(draw(st.integers(0, 8))):
        fitting = machine.expected(walked) if isinstance(walked, int) else ()
        astray = draw(st.integers(0, 9)) == 0
        event_type = draw(st.sampled_from(TYPES if astray or not fitting else fitting))
        told.append((event_type, draw(st.sampled_from([0, 0, 1, 3, 9])) if told else 0))
        if isinstance(walked, int):
            walked = machine.next(walked, event_type, timedelta(seconds=told[-1][1]))
    return process, told


def recorded(told: list[Told], aggregate_id: str = "one") -> list[RecordedEvent]:
    at, events = EPOCH, []
    for version, (event_type, elapsed) in enumerate(told, start=1):
        at += timedelta(seconds=elapsed)
        events.append(
            RecordedEvent(
                event_id=uuid4(),
                event_type=event_type,
                aggregate_id=aggregate_id,
                aggregate_type="thing",
                event_version=version,
                timestamp=at,
                data={},
                position=version,
                recorded_at=at,
            )
        )
    return events


def walk_of(model: ProcessModel, events: list[RecordedEvent]) -> Walk:
    walk = Walk(model, "one")
    for event in events:
        walk.take(event)
    return walk


@settings(max_examples=600, deadline=None)
@given(cases())
def test_the_machine_judges_as_every_way_through_the_process_does(case: tuple[Part, list[Told]]) -> None:
    process, told = case
    broken_at, may_end = naive_verdict(process, told)
    walk = walk_of(ProcessModel("m", process, ("thing",)), recorded(told))
    found = None if walk.violation is None else walk.violation.event_version - 1
    assert found == broken_at
    if broken_at is None:
        assert walk.machine.may_end(walk.walked) == may_end


def verdict(process: Part, *told: str | Told) -> Violation | str:
    pairs = [each if isinstance(each, tuple) else (each, 0) for each in told]
    walk = walk_of(ProcessModel("m", process, ("thing",)), recorded(pairs))
    return walk.violation or walk.status


def test_each_word_of_the_language() -> None:
    assert verdict(sequence("a", "b"), "a", "b") == "complete"
    assert verdict(sequence("a", "b"), "a") == "open"
    assert verdict(sequence("a", optional("b"), "c"), "a", "c") == "complete"
    assert verdict(sequence("a", either("b", "c")), "a", "c") == "complete"
    assert verdict(repeated("a", at_most=2), "a", "a") == "complete"
    broken = verdict(repeated("a", at_most=2), "a", "a", "a")
    assert isinstance(broken, Violation)
    assert (broken.reason, broken.expected, broken.actual, broken.position) == ("unexpected", (), "a", 3)
    late = verdict(sequence("a", within("b", seconds=2)), "a", ("b", 3))
    assert isinstance(late, Violation)
    assert (late.reason, late.expected, late.actual) == ("late", ("b",), "b")
    assert verdict(sequence("a", within("b", seconds=2)), "a", ("b", 2)) == "complete"
    failing = stages("a", "b", "c", interrupted_by="f", taken_back_by="r", given_up_by="x")
    assert verdict(failing, *"fafffbc") == "complete"
    assert (
        verdict(failing, *"abrbc") == verdict(failing, *"abrabc") == verdict(failing, *"abrc") == "complete"
    )
    assert verdict(failing, *"abx") == "complete"
    assert isinstance(verdict(failing, *"arc"), Violation)  # back goes no further than it had come
    assert isinstance(verdict(failing, *"abxc"), Violation)
    assert str(broken) == ("'one' broke 'm' at position 3 ('one', version 3): expected nothing more; found a")


def test_what_has_to_go_on_is_overdue_after_its_time() -> None:
    model = ProcessModel("m", sequence("a", within("b", seconds=2), optional("c")), ("thing",))
    waiting = walk_of(model, recorded([("a", 0)]))
    assert waiting.overdue(EPOCH + timedelta(seconds=2)) is None
    missing = waiting.overdue(EPOCH + timedelta(seconds=3))
    assert missing is not None
    assert (missing.reason, missing.expected, missing.actual, missing.position) == (
        "overdue",
        ("b",),
        None,
        1,
    )
    done = walk_of(model, recorded([("a", 0), ("b", 1)]))
    assert done.overdue(EPOCH + timedelta(days=9)) is None
    whole = ProcessModel("m", sequence("a", "b"), ("thing",), limit=timedelta(seconds=5))
    assert walk_of(whole, recorded([("a", 0)])).overdue(EPOCH + timedelta(seconds=6)) is not None
    late = walk_of(whole, recorded([("a", 0), ("b", 6)])).violation
    assert late is not None
    assert late.reason == "late"


def test_ignored_types_may_come_at_any_time() -> None:
    model = ProcessModel("m", sequence("a", within("b", seconds=2)), ("thing",), ignored=frozenset("n"))
    assert walk_of(model, recorded([("n", 0), ("a", 0), ("n", 1), ("b", 1), ("n", 9)])).status == "complete"


def test_streams_beside_belong_to_their_subject() -> None:
    for stream in ("m-1", "m-1:schema", "m-1:rollback-12"):
        assert MIGRATION.subject_of(stream) == "m-1"
    for stream in ("m-1:rollback-0", "m-1:rollback-x", "m-1:attempt-2", "m-1:schema:"):
        assert MIGRATION.subject_of(stream) == stream
    assert MIGRATION.subject_of("m-1:attempt-2:schema") == "m-1:attempt-2"
    assert STRAIGHT.subject_of("m-1:schema") == "m-1:schema"


def test_models_are_found_by_name() -> None:
    assert process_model("migration") is MIGRATION
    assert [model.name for model in process_models()] == ["migration", "straight-migration"]
    with pytest.raises(NotFoundError):
        process_model("nobody's")


S, E, T, V, I, M = (  # noqa: E741 - the stages' initials
    EventType.MIGRATION_STARTED,
    EventType.DATA_EXTRACTED,
    EventType.DATA_TRANSFORMED,
    EventType.DATA_VALIDATED,
    EventType.DATA_IMPORTED,
    EventType.MIGRATION_COMPLETED,
)
C, U = EventType.SCHEMA_COMPATIBILITY_CHECKED, EventType.UUID_TRANSFORMED
F, B, R = EventType.MIGRATION_FAILED, EventType.ROLLBACK_INITIATED, EventType.ROLLBACK_COMPLETED


@pytest.mark.parametrize(
    "life",
    [
        (S, E, T, V, I, M),
        (S, C, E, U, U, T, V, I, M),
        (S, F, F, C, E, F, T, V, F, I, M),
        (S, C, E, T, V, F, B, R),
        (S, C, E, T, V, I, M, B, R, B, R),
        (S, C, E, T, V, I, B, R, V, I, M),
        (S, C, E, T, V, I, F, B, R, F, E, U, T, V, I, M),
    ],
)
def test_lives_of_a_migration(life: tuple[EventType, ...]) -> None:
    assert verdict(MIGRATION.process, *map(str, life)) == "complete"
    for before, after in pairwise(life):
        if {before, after} == {E, T} or {before, after} == {V, I}:
            swapped = [after if each == before else before if each == after else each for each in life]
            assert isinstance(verdict(MIGRATION.process, *map(str, swapped)), Violation)


def test_a_stage_left_out_is_named() -> None:
    broken = verdict(MIGRATION.process, S, C, T)
    assert isinstance(broken, Violation)
    assert broken.actual == T
    assert set(broken.expected) == {E, F, B}
