"""States: keyed values whose reads and writes commit together, alike on every storage."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from eventsourcing import EventStore, InvalidEventError, UnavailableError
from eventsourcing.storage.base import StateTable, StateTransaction

ONE, TWO = StateTable("one"), StateTable("two")
KEYS = ["", "A", "a", "a/1", "a/10", "a/2", "a\x1fz", "b", "é", "\uffff", "\U0001f600"]


async def put(store: EventStore, values: dict[str, Any], table: StateTable = ONE) -> None:
    async with store.storage.transaction() as states:
        await states.put_many(table, values)


async def get(store: EventStore, key: str, table: StateTable = ONE) -> Any:
    async with store.storage.transaction() as states:
        return await states.get(table, key)


async def test_a_value_put_is_read_back_and_may_be_put_again(store: EventStore) -> None:
    async with store.storage.transaction() as states:
        assert await states.get(ONE, "k") is None
        await states.put(ONE, "k", {"n": 1})
        assert await states.get(ONE, "k") == {"n": 1}
    await put(store, {"k": [2]})
    assert await get(store, "k") == [2]


async def test_every_json_value_is_a_state(store: EventStore) -> None:
    values: tuple[Any, ...] = ({}, [], 0, "", False, {"b": 1, "a": {"deep": [None]}}, 1.5, None)
    for value in values:
        await put(store, {"k": value})
        async with store.storage.transaction() as states:
            assert await states.get(ONE, "k") == value
            assert await states.get_many(ONE, ["k"]) == {"k": value}
            assert await states.scan(ONE) == [("k", value)]
            assert not await states.add(ONE, "k", "another")


async def test_states_are_encoded_in_canonical_json(store: EventStore) -> None:
    await put(store, {"k": {"d": Decimal("1.0"), "t": datetime(2024, 1, 1, tzinfo=UTC)}})
    assert await get(store, "k") == {"d": "1.0", "t": "2024-01-01T00:00:00Z"}
    with pytest.raises(InvalidEventError):
        await put(store, {"k": float("nan")})


async def test_tables_are_apart(store: EventStore) -> None:
    await put(store, {"k": 1}, ONE)
    await put(store, {"k": 2}, TWO)
    assert (await get(store, "k", ONE), await get(store, "k", TWO)) == (1, 2)


async def test_a_changed_answer_does_not_change_the_state(store: EventStore) -> None:
    given = {"n": 1}
    await put(store, {"k": given})
    given["n"] = 2
    (await get(store, "k"))["n"] = 3
    assert await get(store, "k") == {"n": 1}


async def test_add_sets_a_new_key_only(store: EventStore) -> None:
    async with store.storage.transaction() as states:
        assert await states.add(ONE, "k", 1) is True
        assert await states.add(ONE, "k", 2) is False
    async with store.storage.transaction() as states:
        assert await states.add(ONE, "k", 3) is False
        await states.delete(ONE, "k")
        assert await states.add(ONE, "k", 4) is True
    assert await get(store, "k") == 4


async def test_a_deleted_key_is_gone_and_deleting_it_again_is_nothing(store: EventStore) -> None:
    await put(store, {"k": 1, "stays": 2})
    async with store.storage.transaction() as states:
        await states.delete(ONE, "k")
        await states.delete(ONE, "k")
        assert await states.get(ONE, "k") is None
        assert await states.scan(ONE) == [("stays", 2)]
    assert await get(store, "k") is None


async def test_many_are_put_and_those_that_exist_are_read(store: EventStore) -> None:
    await put(store, {"a": 1, "b": 2, "c": 3})
    await put(store, {"b": 20, "d": 4})
    await put(store, {})
    async with store.storage.transaction() as states:
        assert await states.get_many(ONE, ["d", "b", "nothing", "a", "b"]) == {"a": 1, "b": 20, "d": 4}
        assert await states.get_many(ONE, []) == {}


@pytest.mark.parametrize("backwards", [False, True])
async def test_a_scan_gives_keys_in_byte_order_page_by_page(store: EventStore, backwards: bool) -> None:
    await put(store, dict.fromkeys(KEYS, 0))
    ordered = sorted(KEYS, key=str.encode, reverse=backwards)
    async with store.storage.transaction() as states:
        assert [key for key, _ in await states.scan(ONE, backwards=backwards)] == ordered
        assert await pages(states, backwards=backwards, limit=2) == ordered
        for prefix in ("a", "a/", "a/1", "é", "nothing"):
            matching = [key for key in ordered if key.startswith(prefix)]
            assert await pages(states, backwards=backwards, prefix=prefix, limit=2) == matching


async def pages(states: StateTransaction, **given: Any) -> list[str]:
    found: list[str] = []
    while page := await states.scan(ONE, after=found[-1] if found else None, **given):
        assert len(page) <= given["limit"]
        found += [key for key, _ in page]
    return found


async def test_a_scan_goes_on_after_a_key_that_is_not_there(store: EventStore) -> None:
    await put(store, {"a": 1, "c": 3, "e": 5})
    async with store.storage.transaction() as states:
        assert await states.scan(ONE, after="b") == [("c", 3), ("e", 5)]
        assert await states.scan(ONE, after="d", backwards=True) == [("c", 3), ("a", 1)]


async def test_a_scan_sees_what_its_own_transaction_did(store: EventStore) -> None:
    await put(store, {"a": 1, "b": 2})
    async with store.storage.transaction() as states:
        await states.put(ONE, "c", 3)
        await states.put(ONE, "a", 10)
        await states.delete(ONE, "b")
        assert await states.scan(ONE) == [("a", 10), ("c", 3)]


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
async def test_an_exception_undoes_the_whole_transaction(
    store: EventStore, error: type[BaseException]
) -> None:
    await put(store, {"kept": 1, "deleted": 2})

    async def fail() -> None:
        async with store.storage.transaction() as states:
            await states.put(ONE, "kept", 100)
            await states.add(TWO, "new", 1)
            await states.delete(ONE, "deleted")
            raise error

    with pytest.raises(error):
        await fail()
    assert await get(store, "kept") == 1
    assert await get(store, "deleted") == 2
    assert await get(store, "new", TWO) is None


async def test_what_is_not_committed_is_seen_by_nobody_else(store: EventStore) -> None:
    await put(store, {"k": 1})
    async with store.storage.transaction() as states:
        await states.put(ONE, "k", 2)
        outside = asyncio.ensure_future(get(store, "k"))
        await asyncio.sleep(0.02)
        assert not outside.done() or outside.result() == 1
    assert await outside in (1, 2)
    assert await get(store, "k") == 2


async def test_counters_under_a_lock_lose_no_update(store: EventStore) -> None:
    await put(store, {"n": 0})

    async def count() -> None:
        async with store.storage.transaction() as states:
            value = await states.get(ONE, "n", lock=True) or 0
            await asyncio.sleep(0)
            await states.put(ONE, "n", value + 1)

    await asyncio.gather(*(count() for _ in range(20)))
    assert await get(store, "n") == 20


async def test_planted_without_the_lock_updates_are_lost(postgres: EventStore) -> None:
    await put(postgres, {"n": 0})
    both_read = asyncio.Barrier(2)

    async def count() -> None:
        async with postgres.storage.transaction() as states:
            value = await states.get(ONE, "n") or 0
            await both_read.wait()
            await states.put(ONE, "n", value + 1)

    await asyncio.gather(count(), count())
    assert await get(postgres, "n") == 1


async def test_of_many_that_add_one_key_exactly_one_is_told_so(store: EventStore) -> None:
    async def add(n: int) -> bool:
        async with store.storage.transaction() as states:
            return await states.add(ONE, "k", n)

    answers = await asyncio.gather(*(add(n) for n in range(12)))
    assert answers.count(True) == 1
    assert await get(store, "k") == answers.index(True)


async def test_batches_in_any_order_of_keys_do_not_deadlock(store: EventStore) -> None:
    keys = [f"k{n}" for n in range(20)]
    await asyncio.gather(*(put(store, dict.fromkeys(keys if n % 2 else keys[::-1], n)) for n in range(10)))
    async with store.storage.transaction() as states:
        assert len({value for _, value in await states.scan(ONE)}) == 1


async def test_of_two_transactions_that_wait_for_each_other_one_may_try_again(postgres: EventStore) -> None:
    await put(postgres, {"a": 0, "b": 0})
    both_hold = asyncio.Barrier(2)

    async def hold(first: str, second: str) -> None:
        async with postgres.storage.transaction() as states:
            await states.get(ONE, first, lock=True)
            await both_hold.wait()
            await states.get(ONE, second, lock=True)
            await states.put(ONE, first, 1)

    answers = await asyncio.gather(hold("a", "b"), hold("b", "a"), return_exceptions=True)
    [error] = [answer for answer in answers if answer is not None]
    assert isinstance(error, UnavailableError)
    assert error.retryable


async def test_states_survive_closing_and_opening(store: EventStore) -> None:
    await put(store, {"k": 1})
    await store.close()
    await store.initialize()
    assert await get(store, "k") == 1
