"""Leases: one holder of a name at a time, and the next one when it lets go or dies."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from eventsourcing import EventStore, UnavailableError
from eventsourcing.storage import postgres_leases
from eventsourcing.storage.postgres import PostgresStorage


async def test_a_name_has_one_holder_at_a_time(store: EventStore) -> None:
    async with store.storage.lease("relay") as ours:
        assert ours
        async with store.storage.lease("relay") as second, store.storage.lease("other") as other:
            assert not second
            assert other
        async with store.storage.lease("relay") as third:
            assert not third, "whoever was refused lets go of nothing"


async def test_a_name_let_go_can_be_taken_at_once(store: EventStore) -> None:
    for _ in range(20):
        async with store.storage.lease("relay") as ours:
            assert ours


async def test_an_exception_lets_go(store: EventStore) -> None:
    with pytest.raises(RuntimeError):
        async with store.storage.lease("relay"):
            raise RuntimeError
    async with store.storage.lease("relay") as ours:
        assert ours


async def test_a_cancelled_holder_lets_go(store: EventStore) -> None:
    held = asyncio.Event()

    async def hold() -> None:
        async with store.storage.lease("relay"):
            held.set()
            await asyncio.Event().wait()

    holder = asyncio.ensure_future(hold())
    await held.wait()
    holder.cancel()
    await asyncio.gather(holder, return_exceptions=True)
    async with store.storage.lease("relay") as ours:
        assert ours


async def test_of_many_that_try_at_once_exactly_one_holds(store: EventStore) -> None:
    all_tried = asyncio.Barrier(8)

    async def attempt() -> bool:
        async with store.storage.lease("relay") as ours:
            await all_tried.wait()
            return ours

    assert (await asyncio.gather(*(attempt() for _ in range(8)))).count(True) == 1


async def test_processes_exclude_each_other(postgres: EventStore, database_url: str) -> None:
    elsewhere = PostgresStorage(database_url)
    async with postgres.storage.lease("relay") as ours, elsewhere.lease("relay") as theirs:
        assert (ours, theirs) == (True, False)


async def test_a_lease_dies_with_its_connection(
    postgres: EventStore, administrator: asyncpg.Connection
) -> None:
    async with postgres.storage.lease("relay"):
        pid = await administrator.fetchval(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = 17747 AND objsubid = 2"
        )
        await administrator.execute("SELECT pg_terminate_backend($1, 5000)", pid)
        async with postgres.storage.lease("relay") as ours:
            assert ours


async def test_a_holder_that_lost_its_lease_is_told(
    postgres: EventStore, administrator: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_leases, "BEAT_S", 0.1)

    async def hold() -> None:
        async with postgres.storage.lease("relay"):
            await administrator.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks "
                "WHERE locktype = 'advisory' AND classid = 17747 AND objsubid = 2"
            )
            await asyncio.sleep(20)

    with pytest.raises(UnavailableError):
        await hold()


async def test_a_process_that_falls_silent_loses_its_lease_and_one_that_works_long_does_not(
    postgres: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_leases, "SILENCE_S", 0.5)
    monkeypatch.setattr(postgres_leases, "BEAT_S", 0.1)
    async with postgres.storage.lease("alive"):
        monkeypatch.setattr(postgres_leases, "BEAT_S", 60)  # the next holder is as if stopped
        async with postgres.storage.lease("silent") as ours:
            assert ours
            await asyncio.sleep(1.5)
            async with postgres.storage.lease("silent") as taken_over:
                assert taken_over
            async with postgres.storage.lease("alive") as still_held:
                assert not still_held
