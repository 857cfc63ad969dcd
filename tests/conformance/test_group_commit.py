"""Appends of many callers at once: they may be stored together, and each is answered by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from eventsourcing import (
    BaseEvent,
    ConcurrencyError,
    DuplicateEventError,
    EventQuery,
    EventStore,
    RecordedEvent,
)
from eventsourcing.drafts import ANY, NO_STREAM, ExpectedVersion, prepare
from eventsourcing.errors import UnavailableError
from eventsourcing.storage.base import Appended, NewEvent
from eventsourcing.storage.group_commit import (
    BYTES_AT_MOST,
    EVENTS_AT_MOST,
    UNDER_WAY,
    GroupCommit,
)
from eventsourcing.storage.postgres import PostgresStorage
from tests.factories import draft, same

CALLERS = 40


async def test_callers_at_once_are_each_answered_with_their_own(store: EventStore) -> None:
    drafts = [[draft(f"seat-{caller}-{number}") for number in range(2)] for caller in range(CALLERS)]
    answers = await asyncio.gather(*map(store.append_events, drafts))
    for given, stored in zip(drafts, answers, strict=True):
        assert [event.event_id for event in stored] == [event.event_id for event in given]
        assert stored[0].position < stored[1].position
    in_store = [event async for event in store.read(EventQuery())]
    assert sorted(event.position for answer in answers for event in answer) == [e.position for e in in_store]


async def test_they_share_commits(store: EventStore) -> None:
    if not isinstance(store.storage, PostgresStorage):
        return  # nothing is committed in memory
    await asyncio.gather(*(store.append_event(draft(f"seat-{caller}")) for caller in range(CALLERS)))
    commits = await store.storage.pool.fetchval("SELECT count(DISTINCT xmin::text) FROM events")
    assert commits < CALLERS / 2


async def test_who_is_refused_is_refused_alone(store: EventStore) -> None:
    taken = await store.append_event(draft("seat-taken"))
    other = same(taken, data={"passenger": "somebody else"})
    calls = [store.append_event(draft(f"seat-{caller}")) for caller in range(CALLERS)]
    calls[7:7] = [
        store.append_event(draft("seat-taken"), expected_version=NO_STREAM),
        store.append_event(other),
        store.append_event(same(taken)),
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    late, different, again = answers[7:10]
    assert isinstance(late, ConcurrencyError)
    assert isinstance(different, DuplicateEventError)
    assert again == taken
    assert all(isinstance(answer, RecordedEvent) for answer in [*answers[:7], *answers[10:]])
    assert len([event async for event in store.read(EventQuery())]) == CALLERS + 1


async def test_of_callers_who_name_one_version_one_wins(store: EventStore) -> None:
    calls = [store.append_event(draft("seat-1"), expected_version=NO_STREAM) for _ in range(CALLERS)]
    calls += [store.append_event(draft("seat-2")) for _ in range(CALLERS)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(answer, RecordedEvent) for answer in answers[:CALLERS]) == 1
    assert all(isinstance(answer, RecordedEvent) for answer in answers[CALLERS:])
    versions = [event.event_version for event in await store.get_events("seat-2")]
    assert versions == list(range(1, CALLERS + 1))


async def test_who_gives_up_waiting_takes_nobody_along(store: EventStore) -> None:
    await store.append_event(draft("seat-first"))
    calls = [asyncio.create_task(store.append_event(draft(f"seat-{n}"))) for n in range(CALLERS)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(answer, RecordedEvent) for answer in answers[1::2])
    assert not any(isinstance(answer, Exception) for answer in answers)  # given up, or stored before
    for caller in range(1, CALLERS, 2):
        assert len(await store.get_events(f"seat-{caller}")) == 1


class Slow:
    """Ways to append that wait to be let go, and note what they were given."""

    def __init__(self, *, failure: Exception | None = None) -> None:
        self.failure = failure
        self.refusal: Exception | None = None
        self.alone: list[tuple[int, bool]] = []
        self.together: list[int] = []
        self.sent: list[str] = []
        self.gate, self.disk, self.third = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.disk.set()
        self.commit = GroupCommit(self._alone, self._together)

    async def _alone(self, events: Sequence[NewEvent], lost: bool) -> Appended:
        self.alone.append((len(events), lost))
        await self.gate.wait()
        if self.refusal is not None:
            raise self.refusal
        return Appended([], frozenset())

    async def _together(self, events: Sequence[NewEvent]) -> list[RecordedEvent] | None:
        self.together.append(len(events))
        if len(self.together) == 3:
            self.third.set()
        self.sent += [new.event.aggregate_id for new in events]
        await self.disk.wait()
        if self.failure is not None:
            raise self.failure
        return []

    def call(self, count: int = 1) -> asyncio.Task[Appended]:
        return self.send(*(draft(f"seat-{n}") for n in range(count)))

    def send(self, *events: BaseEvent, expected: ExpectedVersion = ANY) -> asyncio.Task[Appended]:
        return asyncio.create_task(self.commit.append(prepare(events, expected)))

    async def occupied(self) -> list[asyncio.Task[Appended]]:
        """As many appends under way as go alone; what is sent now waits."""
        calls = [self.call() for _ in range(UNDER_WAY)]
        await asyncio.sleep(0)
        return calls

    async def let_go(self, *calls: asyncio.Task[Appended]) -> None:
        self.gate.set()
        await asyncio.gather(*calls)


NAMED = {"expected": NO_STREAM}
PAIRS: dict[str, Callable[[Slow], list[asyncio.Task[Appended]]]] = {
    "the first names its version": lambda slow: [slow.send(draft("x"), **NAMED), slow.send(draft("x"))],
    "the second does": lambda slow: [slow.send(draft("x")), slow.send(draft("x"), **NAMED)],
    "both do": lambda slow: [slow.send(draft("x"), **NAMED), slow.send(draft("x"), **NAMED)],
    "one of its events does": lambda slow: [
        slow.send(draft("x", event_version=1), draft("x")),
        slow.send(draft("x")),
    ],
}


@pytest.mark.parametrize("pair", PAIRS)
async def test_appends_to_one_aggregate_of_which_one_names_its_version_go_apart(pair: str) -> None:
    slow = Slow()
    busy = await slow.occupied()
    calls = [*PAIRS[pair](slow), slow.send(draft("y"))]
    await asyncio.sleep(0)
    await slow.let_go(*busy, *calls)
    first = slow.sent.index("y") + 1
    assert slow.sent[:first].count("x") == len(slow.sent[:first]) - 1
    assert slow.together == [first, 1]
    assert slow.sent[first:] == ["x"]


async def test_appends_to_one_aggregate_that_name_no_version_go_together() -> None:
    slow = Slow()
    busy = await slow.occupied()
    calls = [slow.send(draft("x")), slow.send(draft("x"), draft("y")), slow.send(draft("z"))]
    await asyncio.sleep(0)
    await slow.let_go(*busy, *calls)
    assert slow.sent == ["x", "x", "y", "z"]
    assert slow.together == [4]


async def test_nobody_is_answered_before_the_group_is_stored() -> None:
    slow = Slow()
    slow.disk.clear()
    busy = await slow.occupied()
    calls = [slow.send(draft(f"seat-{n}")) for n in range(3)]
    await asyncio.sleep(0)
    await slow.let_go(*busy)
    await asyncio.sleep(0.01)
    assert slow.together == [3]
    assert not any(call.done() for call in calls)
    slow.disk.set()
    await asyncio.gather(*calls)


@pytest.mark.parametrize("failure", [None, UnavailableError("the disk is full")], ids=["stored", "failed"])
async def test_what_has_landed_makes_room(failure: Exception | None) -> None:
    slow = Slow(failure=failure)
    slow.refusal = failure
    calls = [*await slow.occupied(), *(slow.call() for _ in range(3))]
    await asyncio.sleep(0)
    slow.gate.set()
    await asyncio.gather(*calls, return_exceptions=True)
    slow.gate.clear()
    slow.alone.clear()
    again = await slow.occupied()
    assert slow.alone == [(1, False)] * UNDER_WAY
    slow.refusal = None
    await slow.let_go(*again)


async def test_what_was_given_up_before_it_went_is_not_sent() -> None:
    slow = Slow()
    busy = await slow.occupied()
    calls = [slow.send(draft(f"seat-{n}")) for n in range(4)]
    await asyncio.sleep(0)
    calls[1].cancel()
    await asyncio.sleep(0)
    await slow.let_go(*busy, calls[0], *calls[2:])
    assert slow.sent == ["seat-0", "seat-2", "seat-3"]


async def test_a_group_is_not_heavier_than_its_limit() -> None:
    slow = Slow()
    busy = await slow.occupied()
    heavy = "x" * (BYTES_AT_MOST // 3)
    calls = [slow.send(draft(f"seat-{n}", data={"passenger": heavy})) for n in range(4)]
    await asyncio.sleep(0)
    await slow.let_go(*busy, *calls)
    assert slow.together == [2, 2]


async def test_those_that_do_not_fit_into_a_group_wait_no_longer_than_others() -> None:
    slow = Slow()
    slow.disk.clear()
    busy = await slow.occupied()
    calls = [slow.send(draft("x"), expected=NO_STREAM) for _ in range(3)]
    await slow.third.wait()
    slow.disk.set()
    await slow.let_go(*busy, *calls)


async def test_an_attempt_lost_on_its_way_is_settled_by_each() -> None:
    slow = Slow(failure=UnavailableError("the line went dead", outcome_unknown=True))
    calls = [slow.call() for _ in range(5)]
    await asyncio.sleep(0)
    slow.gate.set()
    await asyncio.gather(*calls)
    assert slow.alone == [(1, False)] * 2 + [(1, True)] * 3


async def test_an_attempt_that_failed_is_made_again_by_each() -> None:
    slow = Slow(failure=UnavailableError("the disk is full"))
    calls = [slow.call() for _ in range(5)]
    await asyncio.sleep(0)
    slow.gate.set()
    await asyncio.gather(*calls)
    assert slow.alone == [(1, False)] * 5


async def test_appends_that_stand_still_hold_nobody_up() -> None:
    slow = Slow()
    stuck = [slow.call() for _ in range(2)]
    await asyncio.sleep(0)
    await asyncio.gather(*(slow.call() for _ in range(3)))
    assert slow.together == [3]
    slow.gate.set()
    await asyncio.gather(*stuck)


async def test_a_group_is_small_and_what_is_large_goes_alone() -> None:
    slow = Slow()
    calls = [slow.call() for _ in range(2 + EVENTS_AT_MOST + 3)]
    calls.append(slow.call(EVENTS_AT_MOST + 1))
    await asyncio.sleep(0)
    assert slow.alone[-1] == (EVENTS_AT_MOST + 1, False)
    slow.gate.set()
    await asyncio.gather(*calls)
    assert slow.together == [EVENTS_AT_MOST, 3]
