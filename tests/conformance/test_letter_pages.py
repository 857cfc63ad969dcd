"""Dead letters in pages, and discards of many, over every storage."""

from __future__ import annotations

import pytest

from eventsourcing import BusyError, DeadLetterQueue, EventStore, HandlerError, ParkedSelection, dead_letters
from eventsourcing.dead_letters import DeadLetter, page_of_letters, park, parked_aggregates
from eventsourcing.events import BaseEvent, RecordedEvent
from tests.factories import draft


def failed(event: BaseEvent) -> DeadLetter:
    failure = HandlerError(event.event_id, handler="h", attempts=1, reason="planted")
    failure.__cause__ = ValueError("planted")
    return DeadLetter(event, failure)


@pytest.fixture
async def letters(store: EventStore) -> list[tuple[str, RecordedEvent]]:
    """Of two groups, five aggregates with three letters each, the first of each failed; in order."""
    kept: list[tuple[str, RecordedEvent]] = []
    async with store.storage.transaction() as transaction:
        for group in ("accounts", "accounts2"):
            for number in range(5):
                events = await store.append_events(
                    [draft(f"{group}-{number}", event_type=f"t.{place}") for place in range(3)]
                )
                queue = [failed(events[0]), *map(DeadLetter, events[1:])]
                await park(transaction, group, queue)
                kept += [(group, event) for event in events]
    return kept


async def paged(store: EventStore, limit: int, **filters: str) -> list[tuple[str, str]]:
    found, after = list[tuple[str, str]](), None
    while True:
        rows, after = await page_of_letters(store.storage, after=after, limit=limit, **filters)
        assert len(rows) <= limit
        found += [(dead_letters.owner_of(key)[0], row["event"]["event_id"]) for key, row in rows]
        if after is None:
            return found


@pytest.mark.parametrize("limit", [1, 4, 100])
async def test_pages_of_all_by_group_aggregate_and_type(
    store: EventStore, letters: list[tuple[str, RecordedEvent]], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = [(group, str(event.event_id)) for group, event in letters]
    assert await paged(store, limit) == everything
    assert await paged(store, limit, group="accounts") == everything[:15], "not those of accounts2"
    assert await paged(store, limit, aggregate_id="accounts-2") == everything[6:9]
    assert await paged(store, limit, aggregate_id="accounts-2", group="accounts2") == []
    assert await paged(store, limit, event_type="t.1") == everything[1::3]
    monkeypatch.setattr(dead_letters, "PAGE", 2)
    monkeypatch.setattr(dead_letters, "MAX_LOOKED_AT", 2)
    assert await paged(store, limit, event_type="t.1", group="accounts2") == everything[16::3]


async def test_a_discard_of_many_takes_what_failed_in_front_and_says_what_is_behind(
    store: EventStore, letters: list[tuple[str, RecordedEvent]]
) -> None:
    queue, everything = DeadLetterQueue(store), ParkedSelection("accounts")
    before = await paged(store, 100)
    would = await queue.would_discard(everything, limit=3)
    assert (would.letters, would.released, len(would.behind)) == (3, 0, 3)
    assert await paged(store, 100) == before
    done = await queue.discard_selected(everything, by="ann", why="w", limit=3)
    assert done == would
    again = await queue.discard_selected(everything, by="ann", why="w", limit=3)
    assert (again.letters, again.behind) == (0, would.behind), "the next in front has not failed"
    some = ParkedSelection("accounts", aggregates=("accounts-0", "accounts-4", "nobody"))
    whole = await queue.discard_selected(some, by="ann", why="w", whole_queue=True)
    assert (whole.letters, whole.released, whole.behind) == (2 + 3, 2, ())
    assert await parked_aggregates(store.storage, "accounts") == {f"accounts-{n}" for n in (1, 2, 3)}
    assert len(await paged(store, 100, group="accounts2")) == 15
    acts = await queue.actions()
    assert [act["outcome"]["discarded"]["count"] for act in acts] == [5, 0, 3]
    async with store.storage.lease("redrive/accounts"):
        with pytest.raises(BusyError):
            await queue.discard_selected(everything, by="ann", why="w")
        with pytest.raises(BusyError):
            await queue.require_free("accounts")
