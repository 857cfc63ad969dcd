"""The network between store and server fails: what is lost is settled, and the pool heals by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import asyncpg
import polars as pl
import pytest

from eventsourcing import (
    NO_STREAM,
    BaseEvent,
    ConcurrencyError,
    EventStore,
    UnavailableError,
)
from eventsourcing.storage.base import CHECKPOINTS
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.storage.postgres_append import COPY_FROM
from tests.factories import draft
from tests.faults.proxy import Link, Proxy
from tests.servers import NEWEST
from tests.waiting import once_available

pytestmark = pytest.mark.parametrize("server", [NEWEST], indirect=True)
"""What the client does is the same on every version."""

SIZES = {"one": 1, "some": 3, "copied": COPY_FROM}
LIMIT_S = 2.0


@pytest.fixture
async def store(url: str, proxy: Proxy) -> AsyncIterator[EventStore]:
    """A store behind the network, with statements of every size prepared on its one connection."""
    storage = PostgresStorage(proxy.through(url), pool_size=1, append_timeout_s=LIMIT_S, pool_wait_s=LIMIT_S)
    async with EventStore(storage=storage) as made:
        for size in SIZES.values():
            await made.append_events(batch("warm", size))
        yield made


def batch(aggregate_id: str, size: int) -> list[BaseEvent]:
    return [draft(aggregate_id, data={"n": n}) for n in range(size)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lost", [Link.LOSES_QUESTION, Link.LOSES_ANSWER])
async def test_an_append_whose_question_or_answer_is_lost_is_stored_once_and_returned(
    store: EventStore, proxy: Proxy, lost: Link, size: str
) -> None:
    events = batch("order-1", SIZES[size])
    proxy.link = lost
    stored = await store.append_events(events, expected_version=NO_STREAM)
    assert proxy.struck.is_set()
    assert [event.event_id for event in stored] == [event.event_id for event in events]
    assert await store.get_events("order-1") == stored


async def test_a_frame_whose_answer_is_lost_anywhere_is_whole_when_the_call_is_repeated(
    store: EventStore, proxy: Proxy
) -> None:
    struck = 0
    for let_pass in range(30):
        name = f"frame-{let_pass}"
        rows = pl.DataFrame(
            {
                "event_type": ["order.placed"] * 50,
                "aggregate_id": [f"{name}-{n % 7}" for n in range(50)],
                "aggregate_type": ["order"] * 50,
                "data": [f'{{"n":{n}}}' for n in range(50)],
            }
        )
        proxy.let_pass, proxy.link = let_pass, Link.LOSES_ANSWER
        proxy.struck.clear()
        call = partial(store.append_frame, rows, name=name, chunk_rows=20)
        manifest = await once_available(call)
        assert (manifest.rows, manifest.appended + manifest.found) == (50, 50)
        struck += proxy.struck.is_set()
        proxy.link = Link.WHOLE
        streams = [await store.get_events(f"{name}-{n}") for n in range(7)]
        assert [len(stream) for stream in streams] == [8, 7, 7, 7, 7, 7, 7]
    assert struck > 5, "an answer was lost at every step"


async def test_planted_without_settling_a_lost_answer_is_an_error_that_says_so(
    store: EventStore, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def once(
        attempt: Callable[[], Awaitable[object]], *, within_s: float, lost: bool = False
    ) -> object:
        return await attempt()

    monkeypatch.setattr("eventsourcing.storage.postgres.settled", once)
    proxy.link = Link.LOSES_ANSWER
    with pytest.raises(UnavailableError) as caught:
        await store.append_event(draft())
    assert caught.value.outcome_unknown
    assert len(await store.get_events("order-1")) == 1, "it was stored all the same"


async def test_an_append_that_nobody_can_settle_says_that_repeating_it_is_safe(
    store: EventStore, proxy: Proxy
) -> None:
    event = draft()
    proxy.link = Link.LOSES_ANSWER
    append = asyncio.ensure_future(store.append_event(event))
    await proxy.struck.wait()
    proxy.link = Link.REFUSES
    with pytest.raises(UnavailableError, match="same event ids, and nothing is stored twice") as caught:
        await append
    assert caught.value.outcome_unknown
    assert caught.value.retryable
    proxy.link = Link.WHOLE
    again = await store.append_event(event)
    assert await store.get_events("order-1") == [again]


async def test_a_lost_answer_of_another_writers_race_is_still_a_conflict(
    store: EventStore, proxy: Proxy, url: str
) -> None:
    async with EventStore(storage=PostgresStorage(url)) as elsewhere:
        await elsewhere.append_event(draft())
    proxy.link = Link.LOSES_QUESTION
    with pytest.raises(ConcurrencyError):
        await store.append_event(draft(), expected_version=NO_STREAM)


async def test_a_server_that_cannot_be_reached_is_known_to_have_stored_nothing(
    store: EventStore, proxy: Proxy
) -> None:
    proxy.cut()
    proxy.link = Link.REFUSES
    await asyncio.sleep(0.05)
    with pytest.raises(UnavailableError) as caught:
        await store.append_event(draft())
    assert not caught.value.outcome_unknown
    proxy.link = Link.WHOLE
    assert await store.get_events("order-1") == []


async def test_a_pool_whose_connections_were_cut_heals_on_the_next_call(
    url: str, proxy: Proxy, administrator: asyncpg.Connection
) -> None:
    async with EventStore(storage=PostgresStorage(proxy.through(url), pool_size=4)) as store:
        await asyncio.gather(*(store.append_event(draft()) for _ in range(20)))
        proxy.cut()
        await asyncio.gather(*(store.append_event(draft()) for _ in range(20)))
        await administrator.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await asyncio.gather(*(store.append_event(draft()) for _ in range(20)))
        assert [event.event_version for event in await store.get_events("order-1")] == list(range(1, 61))


async def test_a_slow_network_costs_time_and_nothing_else(store: EventStore, proxy: Proxy) -> None:
    proxy.delay_s = 0.2
    stored = await store.append_event(draft())
    assert await store.get_events("order-1") == [stored]


@pytest.mark.parametrize("size", ["one", "copied"])
async def test_a_network_that_goes_silent_ends_in_an_error_and_leaves_nothing_hanging(
    store: EventStore, proxy: Proxy, size: str
) -> None:
    events = batch("order-1", SIZES[size])
    proxy.link = Link.SILENT
    with pytest.raises(UnavailableError) as caught:
        async with asyncio.timeout(60):
            await store.append_events(events)
    assert caught.value.outcome_unknown
    proxy.link = Link.WHOLE
    proxy.cut()
    assert len(await store.append_events(events)) == len(events)
    assert await store.storage.oldest_append_s() == 0


async def test_a_caller_that_gives_up_on_a_silent_network_is_let_go(store: EventStore, proxy: Proxy) -> None:
    proxy.link = Link.SILENT
    async with asyncio.timeout(30):  # its connection, too, is let go in bounded time
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await store.horizon()
    proxy.link = Link.WHOLE
    assert await store.horizon() > 0


async def test_a_silent_network_does_not_use_up_the_pool(url: str, proxy: Proxy) -> None:
    storage = PostgresStorage(proxy.through(url), pool_size=2, append_timeout_s=0.5, pool_wait_s=0.5)
    async with EventStore(storage=storage) as store:
        await asyncio.gather(*(store.append_event(draft()) for _ in range(4)))
        proxy.link = Link.SILENT
        answers = await asyncio.gather(*(store.horizon() for _ in range(8)), return_exceptions=True)
        assert {type(answer) for answer in answers} == {UnavailableError}
        proxy.link = Link.WHOLE
        assert await asyncio.gather(*(store.horizon() for _ in range(8))) == [await store.horizon()] * 8


async def test_a_state_transaction_that_loses_its_connection_is_undone(
    store: EventStore, proxy: Proxy
) -> None:
    async def cut_in_between() -> None:
        async with store.storage.transaction() as transaction:
            await transaction.put(CHECKPOINTS, "a", {"position": 1})
            proxy.cut()
            await transaction.put(CHECKPOINTS, "b", {"position": 1})

    with pytest.raises(UnavailableError):
        await cut_in_between()
    async with store.storage.transaction() as transaction:
        assert await transaction.scan(CHECKPOINTS) == []
