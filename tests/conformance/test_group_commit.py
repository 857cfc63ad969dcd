"""Appends of many callers at once: they may be stored together, and each is answered by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from eventsourcing import (
    BaseEvent,
    ConcurrencyError,
    DuplicateEventError,
    EventQuery,
    EventStore,
    RecordedEvent,
)
from eventsourcing.drafts import NO_STREAM, prepare
from eventsourcing.errors import UnavailableError
from eventsourcing.storage.base import Appended, NewEvent
from eventsourcing.storage.group_commit import EVENTS_AT_MOST, GroupCommit
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
        self.alone: list[tuple[int, bool]] = []
        self.together: list[int] = []
        self.gate = asyncio.Event()
        self.commit = GroupCommit(self._alone, self._together)

    async def _alone(self, events: Sequence[NewEvent], lost: bool) -> Appended:
        self.alone.append((len(events), lost))
        await self.gate.wait()
        return Appended([], frozenset())

    async def _together(self, events: Sequence[NewEvent]) -> list[RecordedEvent] | None:
        self.together.append(len(events))
        if self.failure is not None:
            raise self.failure
        return []

    def call(self, count: int = 1) -> asyncio.Task[Appended]:
        events: list[BaseEvent] = [draft(f"seat-{n}") for n in range(count)]
        return asyncio.create_task(self.commit.append(prepare(events)))


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
