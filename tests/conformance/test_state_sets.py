"""States by the many: counted, removed in bounded batches, undone in part; and what conflicts do."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from eventsourcing import EventStore, InvalidEventError
from eventsourcing.events import new_event_id
from eventsourcing.storage.base import StateTable, StateTransaction, purge_all
from eventsourcing.storage.postgres_states import COPY_FROM
from eventsourcing.storage.statements import statements
from tests.waiting import until

PURGE_WAITS = """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                 AND query LIKE '%DELETE FROM states%' AND wait_event_type = 'Lock'"""
ONE, TWO = StateTable("one"), StateTable("two")


async def put(store: EventStore, values: dict[str, Any], table: StateTable = ONE) -> None:
    async with store.storage.transaction() as states:
        await states.put_many(table, values)


async def keys(store: EventStore, table: StateTable = ONE) -> list[str]:
    async with store.storage.transaction() as states:
        return [key for key, _ in await states.scan(table)]


async def test_keys_of_a_prefix_are_counted(store: EventStore) -> None:
    await put(store, dict.fromkeys(["a", "a/1", "a/2", "b"], 0))
    await put(store, {"a/3": 0}, TWO)
    async with store.storage.transaction() as states:
        await states.delete(ONE, "a/1")
        await states.put(ONE, "a/4", 0)
        await states.put(ONE, "a/5", 0)
        assert await states.count(ONE) == 5
        assert await states.count(ONE, prefix="a/") == 3
        assert await states.count(ONE, prefix="c") == 0
        assert await states.count(StateTable("nothing")) == 0


async def test_many_are_deleted_and_those_not_there_are_none(store: EventStore) -> None:
    await put(store, dict.fromkeys("abcd", 0))
    await put(store, {"a": 0}, TWO)
    async with store.storage.transaction() as states:
        await states.delete_many(ONE, ["c", "nothing", "a", "c"])
        await states.delete_many(ONE, [])
        assert [key for key, _ in await states.scan(ONE)] == ["b", "d"]
    assert await keys(store, TWO) == ["a"]


async def test_a_purge_takes_the_first_keys_of_a_prefix_and_says_how_many(store: EventStore) -> None:
    await put(store, dict.fromkeys(["a", *(f"a/{n}" for n in range(5)), "b"], 0))
    await put(store, {"a/0": 0}, TWO)
    async with store.storage.transaction() as states:
        assert await states.purge(ONE, prefix="a/", limit=2) == 2
        assert await states.purge(ONE, prefix="c/") == 0
    assert await keys(store) == ["a", "a/2", "a/3", "a/4", "b"]
    assert await purge_all(store.storage, ONE, prefix="a/", batch=2) == 3
    assert await purge_all(store.storage, ONE, batch=1) == 2
    assert (await keys(store), await keys(store, TWO)) == ([], ["a/0"])


async def test_a_purge_by_age_spares_what_was_set_since(store: EventStore) -> None:
    await put(store, dict.fromkeys(["k/old", "k/renewed", "other"], 0))
    await asyncio.sleep(0.25)
    await put(store, dict.fromkeys(["k/new", "k/renewed"], 1))
    async with store.storage.transaction() as states:
        await states.put(ONE, "k/now", 1)
        assert await states.purge(ONE, prefix="k/", older_than_s=3600) == 0
        assert await states.purge(ONE, prefix="k/", older_than_s=0.2) == 1
    assert await keys(store) == ["k/new", "k/now", "k/renewed", "other"]


async def test_a_purge_that_is_undone_removed_nothing(store: EventStore) -> None:
    await put(store, dict.fromkeys("abc", 0))

    async def fail() -> None:
        async with store.storage.transaction() as states:
            assert await states.purge(ONE) == 3
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert await keys(store) == ["a", "b", "c"]


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
async def test_a_savepoint_undoes_its_own_part_only(store: EventStore, error: type[BaseException]) -> None:
    await put(store, {"kept": 1, "deleted": 2})

    async def fail(states: StateTransaction) -> None:
        async with states.savepoint():
            await states.put_many(ONE, {"kept": 100, "before": 100})
            await states.add(TWO, "new", 1)
            await states.delete(ONE, "deleted")
            raise error

    async with store.storage.transaction() as states:
        await states.put(ONE, "before", 1)
        with pytest.raises(error):
            await fail(states)
        assert await states.get_many(ONE, ["before", "deleted", "kept"]) == {
            "before": 1,
            "deleted": 2,
            "kept": 1,
        }
        assert await states.add(TWO, "new", 2)
        async with states.savepoint():
            await states.put(ONE, "after", 1)
    assert await keys(store) == ["after", "before", "deleted", "kept"]
    assert await keys(store, TWO) == ["new"]


async def test_savepoints_nest(store: EventStore) -> None:
    async def fail(states: StateTransaction) -> None:
        async with states.savepoint():
            async with states.savepoint():
                await states.put(ONE, "undone", 1)
            raise RuntimeError

    async with store.storage.transaction() as states:
        async with states.savepoint():
            await states.put(ONE, "outer", 1)
            with pytest.raises(RuntimeError):
                await fail(states)
        with pytest.raises(RuntimeError):
            await fail(states)
    assert await keys(store) == ["outer"]


async def test_a_savepoint_does_not_outlive_its_transaction(store: EventStore) -> None:
    async def fail() -> None:
        async with store.storage.transaction() as states:
            async with states.savepoint():
                await states.put(ONE, "k", 1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert await keys(store) == []


async def test_a_transaction_goes_on_after_the_database_refused_what_stands_in_a_savepoint(
    postgres: EventStore,
) -> None:
    async with postgres.storage.transaction() as states:
        await states.put(ONE, "a", 1)
        with pytest.raises(InvalidEventError):
            async with states.savepoint():
                await states.put(ONE, "no\x00key", 1)
        await states.put(ONE, "b", 1)
    assert await keys(postgres) == ["a", "b"]


async def test_an_idempotency_key_is_taken_once_answered_and_gone_after_its_time(store: EventStore) -> None:
    async def take(n: int) -> bool:
        async with store.storage.transaction() as states:
            return await states.add(ONE, "POST/key", {"by": n})

    assert (await asyncio.gather(*(take(n) for n in range(8)))).count(True) == 1
    async with store.storage.transaction() as states:
        await states.put(ONE, "POST/key", {"status": 201})
    assert await purge_all(store.storage, ONE, older_than_s=24 * 3600) == 0
    await asyncio.sleep(0.15)
    assert await purge_all(store.storage, ONE, older_than_s=0.1) == 1
    assert await take(9)


async def test_entries_under_time_ordered_keys_are_a_log_that_is_read_from_its_end(store: EventStore) -> None:
    for number in range(7):
        async with store.storage.transaction() as states:
            assert await states.add(ONE, f"audit/{new_event_id().hex}", number)
    read: list[int] = []
    after = None
    async with store.storage.transaction() as states:
        while page := await states.scan(ONE, prefix="audit/", after=after, limit=3, backwards=True):
            read += [entry for _, entry in page]
            after = page[-1][0]
    assert read == [6, 5, 4, 3, 2, 1, 0]


async def add_after(store: EventStore, started: asyncio.Event, *, fail: bool) -> bool:
    """Add the key first, and end only after another transaction began to add it too."""
    async with store.storage.transaction() as states:
        added = await states.add(ONE, "k", "first")
        started.set()
        await asyncio.sleep(0.1)
        if fail:
            raise RuntimeError
        return added


@pytest.mark.parametrize("fail", [False, True])
async def test_who_adds_a_key_that_another_is_adding_waits_for_its_end(store: EventStore, fail: bool) -> None:
    started = asyncio.Event()
    first = asyncio.create_task(add_after(store, started, fail=fail))
    await started.wait()
    async with store.storage.transaction() as states:
        added = await states.add(ONE, "k", "second")
        found = await states.get(ONE, "k")
    assert (added, found) == ((True, "second") if fail else (False, "first"))
    await asyncio.gather(first, return_exceptions=True)
    assert await keys(store) == ["k"]


async def test_sets_removed_and_set_in_any_order_of_keys_do_not_deadlock(store: EventStore) -> None:
    names = [f"k{n:04d}" for n in range(2000)]
    for half in (names[1000:], names[:1000]):  # so that they lie in another order than that of the keys
        await put(store, dict.fromkeys(half, 0))

    async def work(turn: int) -> None:
        async with store.storage.transaction() as states:
            if turn % 3 == 0:
                await states.put_many(ONE, dict.fromkeys(names[::-1], turn))
            elif turn % 3 == 1:
                await states.delete_many(ONE, names[::-1])
            else:
                await states.purge(ONE, limit=1500)

    await asyncio.gather(*(work(turn) for turn in range(24)))


async def test_what_is_set_again_while_a_purge_waits_for_it_is_spared(
    postgres: EventStore, administrator: asyncpg.Connection
) -> None:
    async def waits() -> bool:
        return bool(await administrator.fetchval(PURGE_WAITS))

    await put(postgres, {"k": 0})
    await administrator.execute("UPDATE states SET changed_at = changed_at - interval '2 hours'")
    async with postgres.storage.transaction() as states:
        await states.put(ONE, "k", 1)
        purging = asyncio.create_task(purge_all(postgres.storage, ONE, older_than_s=3600))
        await until(waits)
    assert await purging == 0
    assert await keys(postgres) == ["k"]


@pytest.mark.parametrize("name", ["scan", "scan_backwards"])
async def test_a_deep_page_of_a_scan_begins_where_the_last_one_ended(
    postgres: EventStore, administrator: asyncpg.Connection, name: str
) -> None:
    await put(postgres, {f"k{n:05d}": n for n in range(5000)})
    await administrator.execute("ANALYZE states")
    await administrator.execute("SET plan_cache_mode = force_generic_plan")
    statement = statements("states")[name]
    await administrator.execute(f"PREPARE page (text, text, text, bigint) AS {statement}")
    plan = "\n".join(
        row[0] for row in await administrator.fetch("EXPLAIN EXECUTE page ('one', 'k04000', 'k04100', 10)")
    )
    assert "Index Scan" in plan
    assert "Filter" not in plan
    assert all(bound in plan for bound in ("(key >= $2)", "(key < $3)"))


async def test_many_keys_are_set_whether_they_were_there_or_not(store: EventStore) -> None:
    """New ones are copied in, once it was looked that they are not there; one that came since is no fault."""
    everybody = [f"user-{number:05d}" for number in range(4 * COPY_FROM)]
    await put(store, dict.fromkeys(everybody[::3], "old"))
    await put(store, dict.fromkeys(everybody, "other"), TWO)
    for round_, value in enumerate(("first", "second")):
        async with store.storage.transaction() as states:
            found = await states.get_many(ONE, everybody)
            assert len(found) == (len(everybody[::3]) if round_ == 0 else len(everybody))
            if round_ == 0:
                await states.put(ONE, everybody[1], "since")
            wanted: dict[str, Any] = {key: {"is": value} for key in everybody}
            await states.put_many(ONE, wanted)
            await states.put_many(ONE, {everybody[0]: "again"})
        async with store.storage.transaction() as states:
            values = await states.get_many(ONE, everybody)
            assert values == wanted | {everybody[0]: "again"}
            assert (await states.get_many(TWO, everybody)) == dict.fromkeys(everybody, "other")


async def test_what_was_copied_in_is_undone_with_its_transaction(store: EventStore) -> None:
    everybody = [f"user-{number:05d}" for number in range(COPY_FROM)]

    async def given_up() -> None:
        async with store.storage.transaction() as states:
            assert await states.get_many(ONE, everybody) == {}
            await states.put_many(ONE, dict.fromkeys(everybody, 1))
            raise RuntimeError("given up")

    with pytest.raises(RuntimeError, match="given up"):
        await given_up()
    assert await keys(store) == []
