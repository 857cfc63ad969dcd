"""Versions: 1, 2, 3 … without a gap, and one winner of every race (G3)."""

from __future__ import annotations

import asyncio
from collections import Counter

import asyncpg
import pytest

from eventsourcing import (
    ANY,
    NO_STREAM,
    ConcurrencyError,
    EventStore,
    InvalidEventError,
    RecordedEvent,
)
from tests.factories import draft, drafts


async def versions(store: EventStore, aggregate_id: str) -> list[int]:
    return [event.event_version for event in await store.get_events(aggregate_id)]


async def test_versions_count_from_one_in_each_aggregate(store: EventStore) -> None:
    await store.append_event(draft("a"))
    await store.append_events(drafts(3, "b"))
    await store.append_events([draft("a"), draft("b"), draft("a")])
    assert await versions(store, "a") == [1, 2, 3]
    assert await versions(store, "b") == [1, 2, 3, 4]


async def test_events_of_several_aggregate_types_share_a_stream(store: EventStore) -> None:
    await store.append_events([draft(), draft(aggregate_type="invoice")])
    assert await versions(store, "order-1") == [1, 2]


@pytest.mark.parametrize("expected", [NO_STREAM, 0])
async def test_no_stream_holds_for_a_new_aggregate_only(store: EventStore, expected: int) -> None:
    await store.append_event(draft(), expected_version=expected)
    with pytest.raises(ConcurrencyError) as caught:
        await store.append_event(draft(), expected_version=expected)
    error = caught.value
    assert (error.aggregate_id, error.expected, error.actual) == ("order-1", 0, 1)
    assert await versions(store, "order-1") == [1]


@pytest.mark.parametrize(("expected", "holds"), [(0, False), (1, False), (2, True), (3, False), (9, False)])
async def test_an_expected_number_is_the_version_of_the_last_event(
    store: EventStore, expected: int, holds: bool
) -> None:
    await store.append_events(drafts(2))
    if holds:
        stored = await store.append_events([draft(), draft()], expected_version=expected)
        assert [event.event_version for event in stored] == [3, 4]
    else:
        with pytest.raises(ConcurrencyError) as caught:
            await store.append_events([draft(), draft()], expected_version=expected)
        assert (caught.value.expected, caught.value.actual) == (expected, 2)
        assert not caught.value.retryable


async def test_any_appends_at_whatever_version_the_aggregate_is(store: EventStore) -> None:
    for _ in range(3):
        await store.append_event(draft(), expected_version=ANY)
    assert await versions(store, "order-1") == [1, 2, 3]


async def test_a_mapping_names_a_version_for_each_aggregate(store: EventStore) -> None:
    await store.append_events(drafts(2, "a"))
    batch = [draft("b"), draft("a"), draft("c")]
    with pytest.raises(ConcurrencyError) as caught:
        await store.append_events(batch, expected_version={"a": 1, "b": NO_STREAM})
    assert caught.value.aggregate_id == "a"
    stored = await store.append_events(batch, expected_version={"a": 2, "b": NO_STREAM, "c": ANY})
    assert [event.event_version for event in stored] == [1, 3, 1]


async def test_one_number_for_several_aggregates_is_refused(store: EventStore) -> None:
    with pytest.raises(InvalidEventError) as caught:
        await store.append_events([draft("a"), draft("b")], expected_version=0)
    assert caught.value.field == "expected_version"


async def test_a_number_that_is_no_version_is_refused(store: EventStore) -> None:
    with pytest.raises(InvalidEventError):
        await store.append_event(draft(), expected_version=-2)


async def test_an_explicit_version_must_be_exactly_the_next(store: EventStore) -> None:
    await store.append_event(draft(event_version=1))
    for wrong in (1, 3):
        with pytest.raises(ConcurrencyError) as caught:
            await store.append_event(draft(event_version=wrong))
        assert (caught.value.expected, caught.value.actual) == (wrong - 1, 1)
    stored = await store.append_events([draft(event_version=2), draft(), draft(event_version=4)])
    assert [event.event_version for event in stored] == [2, 3, 4]


async def test_an_explicit_version_must_agree_with_the_expected_one(store: EventStore) -> None:
    with pytest.raises(InvalidEventError) as caught:
        await store.append_events([draft(event_version=1), draft(event_version=3)], expected_version=0)
    assert (caught.value.index, caught.value.field) == (1, "event_version")


async def test_of_many_writers_of_one_version_exactly_one_wins(store: EventStore) -> None:
    assert await race(store, writers=16, rounds=5) == [1] * 5
    assert await versions(store, "order-1") == [1, 2, 3, 4, 5]


@pytest.mark.chaos
@pytest.mark.timeout(1800)
async def test_of_thirty_two_writers_exactly_one_wins_each_of_five_hundred_rounds(store: EventStore) -> None:
    winners = await race(store, writers=32, rounds=500)
    print(f"{len(winners)} rounds of 32 writers: {Counter(winners)} winners a round")  # noqa: T201 - shown by `-s`
    assert winners == [1] * 500
    assert await versions(store, "order-1") == list(range(1, 501))


async def test_planted_without_the_constraint_a_round_has_several_winners(
    postgres: EventStore, administrator: asyncpg.Connection
) -> None:
    await administrator.execute(DAWDLE)  # between the version resolved and the row inserted
    assert await race(postgres, writers=8, rounds=5) == [1] * 5
    await administrator.execute("ALTER TABLE events DROP CONSTRAINT events_stream_version_key")
    assert max(await race(postgres, writers=8, rounds=6, start=5)) > 1
    assert await versions(postgres, "order-1") != list(range(1, 7))


DAWDLE = """
CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_sleep(0.005); RETURN NEW; END $$;
CREATE TRIGGER dawdle BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION dawdle()
"""


async def race(store: EventStore, *, writers: int, rounds: int, start: int = 0) -> list[int]:
    """How many writers won each round; whoever lost was told of the conflict."""
    winners = []
    for round_ in range(start, rounds):
        answers = await asyncio.gather(
            *(store.append_event(draft(), expected_version=round_) for _ in range(writers)),
            return_exceptions=True,
        )
        counted = Counter(map(type, answers))
        assert set(counted) <= {RecordedEvent, ConcurrencyError}, answers
        winners.append(counted[RecordedEvent])
    return winners


async def test_of_many_batches_that_name_a_version_exactly_one_wins_whole(store: EventStore) -> None:
    batches = [[draft("a"), draft("b"), draft("a")] for _ in range(8)]
    answers = await asyncio.gather(
        *(store.append_events(batch, expected_version={"a": 0, "b": 0}) for batch in batches),
        return_exceptions=True,
    )
    assert Counter(map(type, answers)) == {list: 1, ConcurrencyError: 7}
    assert await versions(store, "a") == [1, 2]
    assert await versions(store, "b") == [1]


async def test_writers_that_name_no_version_all_succeed_without_a_gap(store: EventStore) -> None:
    await asyncio.gather(
        *(store.append_events([draft("a"), draft(f"own-{n}"), draft("b")]) for n in range(24))
    )
    for name in ("a", "b"):
        stream = await store.get_events(name)
        assert [event.event_version for event in stream] == list(range(1, 25))
        positions = [event.position for event in stream]
        assert positions == sorted(positions), "within an aggregate, position order is version order"


async def test_writers_that_touch_the_same_aggregates_in_other_orders_do_not_deadlock(
    store: EventStore,
) -> None:
    names = ["a", "b", "c", "d"]
    await asyncio.gather(
        *(store.append_events([draft(name) for name in (names if n % 2 else names[::-1])]) for n in range(20))
    )
    for name in names:
        assert await versions(store, name) == list(range(1, 21))


async def test_an_expected_version_of_a_stranger_is_refused(store: EventStore) -> None:
    with pytest.raises(InvalidEventError, match="no event of the call is of 'other'"):
        await store.append_events([draft("a")], expected_version={"other": 9})

    assert [found async for found in store.get_all_events()] == []
