"""Any sequence of calls: the store answers what a dictionary would (stateful property test)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from eventsourcing import (
    ANY,
    NO_STREAM,
    BaseEvent,
    CursorAheadError,
    EventQuery,
    EventSourcingError,
    EventStore,
    RecordedEvent,
)
from eventsourcing.storage.postgres import PostgresStorage
from tests.conformance.model import DictStore
from tests.databases import Databases
from tests.factories import NOON

AGGREGATES, TYPES, KINDS = ("a", "b", "c"), ("order.placed", "order.paid"), ("order", "invoice")
CORRELATIONS = (None, UUID(int=1), UUID(int=2))

aggregates = st.sampled_from(AGGREGATES)
moments = st.integers(-2, 2).map(lambda minutes: NOON + timedelta(minutes=minutes))
new_events = st.builds(
    BaseEvent,
    event_id=st.integers(1, 40).map(lambda number: UUID(int=number)),  # few ids, so that some repeat
    event_type=st.sampled_from(TYPES),
    aggregate_id=aggregates,
    aggregate_type=st.sampled_from(KINDS),
    event_version=st.sampled_from((0, 0, 0, 0, 1, 2, 3)),
    timestamp=moments,
    correlation_id=st.sampled_from(CORRELATIONS),
    data=st.dictionaries(st.sampled_from("xy"), st.none() | st.integers(0, 1), max_size=1),
)
queries = st.builds(
    EventQuery,
    aggregate_id=st.none() | aggregates,
    event_types=st.lists(st.sampled_from((*TYPES, "order.sent")), max_size=2).map(tuple),
    aggregate_types=st.lists(st.sampled_from(KINDS), max_size=1).map(tuple),
    correlation_id=st.sampled_from(CORRELATIONS),
    from_timestamp=st.none() | moments,
    to_timestamp=st.none() | moments,
    from_version=st.none() | st.integers(0, 4),
    to_version=st.none() | st.integers(0, 4),
    limit=st.none() | st.integers(0, 5),
    backwards=st.booleans(),
)

OFF = st.sampled_from((None, 0, 0, 0, 1, 5))
"""How far a version that a caller names is off; None: it names ANY."""

Answer = TypeVar("Answer")
MakeStore = Callable[[], EventStore]


class StoreMachine(RuleBasedStateMachine):
    """One store and one dictionary, told the same things."""

    make_store: MakeStore

    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner()
        self.store = type(self).make_store()
        self.model = DictStore()
        self.positions: list[int] = []

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.run(self.store.close())
            self.runner.close()

    def run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        return self.runner.run(work)

    @rule(batch=st.lists(new_events, min_size=1, max_size=4))
    def append(self, batch: list[BaseEvent]) -> None:
        self._append(batch, {})

    @rule(batch=st.lists(new_events, min_size=1, max_size=4), data=st.data())
    def append_expecting(self, batch: list[BaseEvent], data: st.DataObject) -> None:
        """The caller names versions for some aggregates, rightly or wrongly; none of its events is stored."""
        fresh = self._fresh(batch)
        named = {
            name: ANY if (off := data.draw(OFF)) is None else self.model.version(name) + off
            for name in sorted({event.aggregate_id for event in fresh})
            if data.draw(st.booleans())
        }
        self._append(fresh, named)

    @rule(batch=st.lists(new_events, min_size=1, max_size=4), data=st.data())
    def append_expecting_a_number(self, batch: list[BaseEvent], data: st.DataObject) -> None:
        """A number, ANY or NO_STREAM for the one aggregate of the call."""
        fresh = [event for event in self._fresh(batch) if event.aggregate_id == batch[0].aggregate_id]
        if fresh:
            right = self.model.version(batch[0].aggregate_id)
            self._append(
                fresh, data.draw(st.sampled_from((ANY, NO_STREAM, right, right + 1, max(right - 1, 0))))
            )

    def _fresh(self, batch: list[BaseEvent]) -> list[BaseEvent]:
        """Those of the events that are not stored, each id once and without a version of its own."""
        return list(
            {
                event.event_id: event.model_copy(update={"event_version": 0})
                for event in batch
                if event.event_id not in self.model.events
            }.values()
        )

    @precondition(lambda self: hasattr(self, "last_call"))
    @rule()
    def call_again(self) -> None:
        """A caller that never got its answer makes the same call again."""
        batch, expected, stored = self.last_call
        assert self.run(self.store.append_events(batch, expected_version=expected)) == stored

    @rule(data=st.data())
    def append_again(self, data: st.DataObject) -> None:
        """A caller that never got its answer tries again."""
        if self.model.events:
            chosen = data.draw(st.lists(st.sampled_from(list(self.model.events.values())), max_size=4))
            self._append(chosen, {})

    def _append(self, batch: list[BaseEvent] | list[RecordedEvent], expected: int | dict[str, int]) -> None:
        by_name = (
            {name: version for name, version in expected.items() if version != ANY}
            if isinstance(expected, dict)
            else {event.aggregate_id: expected for event in batch if expected != ANY}
        )
        wanted = self.model.append(batch, by_name)
        append = self.store.append_events(batch, expected_version=expected)
        if not isinstance(wanted, list):
            with pytest.raises(wanted):
                self.run(append)
            return
        stored = self.run(append)
        if stored:
            self.last_call = (batch, expected, stored)
        self.positions = sorted({*self.positions, *(event.position for event in stored)})
        assert list(map(self._placed, stored)) == list(map(_content, wanted))

    @rule(query=queries, batch_size=st.integers(1, 4), data=st.data())
    def read(self, query: EventQuery, batch_size: int, data: st.DataObject) -> None:
        places = st.none() | st.integers(0, len(self.positions))
        after, upto = data.draw(places), data.draw(places)
        wanted = self.model.read(query.where(after_position=after, to_position=upto))
        window = query.where(after_position=self._position(after), to_position=self._position(upto))
        assert list(map(self._placed, self._read(window, batch_size))) == list(map(_content, wanted))

    @rule(ahead=st.integers(1, 3))
    def read_ahead(self, ahead: int) -> None:
        head = self.positions[-1] if self.positions else 0
        with pytest.raises(CursorAheadError):
            self._read(EventQuery(after_position=head + ahead), 10)

    @rule()
    def count(self) -> None:
        assert self.run(self.store.get_event_stats()) == self.model.statistics()

    @rule()
    def reopen(self) -> None:
        self.run(self.store.close())

    @invariant()
    def the_horizon_is_the_last_position(self) -> None:
        if hasattr(self, "store"):
            assert self.run(self.store.horizon()) == (self.positions[-1] if self.positions else 0)

    def _read(self, query: EventQuery, batch_size: int) -> list[RecordedEvent]:
        async def collect() -> list[RecordedEvent]:
            return [event async for event in self.store.read(query, batch_size=batch_size)]

        return self.run(collect())

    def _position(self, place: int | None) -> int | None:
        """The store's position of the model's n-th event; positions of undone appends are left out."""
        return None if place is None else (self.positions[place - 1] if place else 0)

    def _placed(self, event: RecordedEvent) -> dict[str, Any]:
        """The event's content, with the model's place instead of the store's position."""
        return {**_content(event), "position": self.positions.index(event.position) + 1}


def _content(event: RecordedEvent) -> dict[str, Any]:
    return event.model_dump(exclude={"recorded_at"})


def check(
    make_store: MakeStore,
    *,
    examples: int,
    steps: int = 15,
    phases: Sequence[Phase] = (Phase.generate, Phase.shrink),
) -> None:
    machine = type("Machine", (StoreMachine,), {"make_store": staticmethod(make_store)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=phases,
            suppress_health_check=list(HealthCheck),
        ),
    )


def in_memory() -> EventStore:
    return EventStore(use_memory=True)


@pytest.fixture
def on_postgres(version: str, databases: Callable[[str], Databases]) -> MakeStore:
    return lambda: EventStore(storage=PostgresStorage(databases(version).clear()))


def test_the_memory_storage_answers_like_a_dictionary() -> None:
    check(in_memory, examples=100)


def test_postgresql_answers_like_a_dictionary(on_postgres: MakeStore) -> None:
    check(on_postgres, examples=15)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_the_memory_storage_answers_like_a_dictionary_at_length() -> None:
    check(in_memory, examples=2000, steps=40)


@pytest.mark.chaos
@pytest.mark.timeout(7200)
def test_postgresql_answers_like_a_dictionary_at_length(on_postgres: MakeStore) -> None:
    check(on_postgres, examples=2000, steps=30)


class Forgetful(EventStore):
    """The planted fault: it stores a repeated event a second time, under another id."""

    async def append_events(self, events: Any, **given: Any) -> list[RecordedEvent]:
        stored = await super().append_events(events, **given)
        if any(event.event_version > 1 for event in stored):
            other_id = {"event_id": UUID(int=events[0].event_id.int + 2**64), "event_version": 0}
            await super().append_events([events[0].model_copy(update=other_id)])
        return stored


def test_planted_a_store_that_doubles_an_append_is_caught() -> None:
    with pytest.raises((AssertionError, EventSourcingError, ExceptionGroup)):
        check(lambda: Forgetful(use_memory=True), examples=50, phases=[Phase.generate])
