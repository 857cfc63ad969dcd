"""The server cannot serve: the error says so, nothing is half-done, and it passes without a restart."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from eventsourcing import BaseEvent, EventStore, UnavailableError
from eventsourcing.storage.base import CHECKPOINTS
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.storage.postgres_append import COPY_FROM
from tests.factories import draft, drafts
from tests.servers import Server, own
from tests.waiting import forever, once_available, until

LIMIT_S = 0.5
RAISES = """
CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'planted' USING ERRCODE = '{}'; END $$;
CREATE TRIGGER fails AFTER INSERT ON events FOR EACH ROW EXECUTE FUNCTION fails()
"""


@asynccontextmanager
async def opened(url: str, *, pool_size: int = 4, limit_s: float = 30.0) -> AsyncIterator[EventStore]:
    storage = PostgresStorage(url, pool_size=pool_size, append_timeout_s=limit_s, pool_wait_s=LIMIT_S)
    async with EventStore(storage=storage) as store:
        yield store


@pytest.fixture
async def store(url: str) -> AsyncIterator[EventStore]:
    """A store that waits long for the server, and shortly for its own pool."""
    async with opened(url) as made:
        yield made


async def test_the_server_is_of_the_version_that_the_tests_name(
    server: Server, administrator: asyncpg.Connection
) -> None:
    assert str(administrator.get_server_version().major) == server.version


async def refused(store: EventStore, *, match: str, sizes: tuple[int, ...] = (1, 3, COPY_FROM)) -> None:
    """Every way to append is refused for now, and leaves nothing."""
    for size in sizes:
        events: list[BaseEvent] = drafts(size, f"refused-{size}")
        with pytest.raises(UnavailableError, match=match) as caught:
            await store.append_events(events)
        assert caught.value.retryable
        assert not caught.value.outcome_unknown
        assert await store.get_events(f"refused-{size}") == []


@pytest.mark.parametrize("state", ["53100", "53200", "55P03", "57014", "58030", "25006"])
async def test_what_the_server_says_it_cannot_do_now_may_be_tried_again(
    store: EventStore, administrator: asyncpg.Connection, state: str
) -> None:
    await store.initialize()
    await administrator.execute(RAISES.format(state))
    await refused(store, match="planted")
    await administrator.execute("DROP TRIGGER fails ON events")
    assert (await store.append_event(draft())).event_version == 1


async def test_a_statement_that_takes_too_long_is_ended_by_the_server(
    url: str, administrator: asyncpg.Connection
) -> None:
    async with opened(url, limit_s=LIMIT_S) as store:
        await store.initialize()
        async with administrator.transaction():
            await administrator.execute("LOCK TABLE events IN EXCLUSIVE MODE")
            await refused(store, match="took too long and was undone", sizes=(1, 3))
            with pytest.raises(UnavailableError):  # many statements: the client may be first to give up
                await store.append_events(drafts(COPY_FROM, "copied"))
        await store.append_events(drafts(COPY_FROM, "copied"))
        assert len(await store.get_events("copied")) == COPY_FROM


async def test_a_lock_timeout_of_the_database_is_no_defect(
    url: str, administrator: asyncpg.Connection
) -> None:
    await administrator.execute(f'ALTER DATABASE "{make_url(url).database}" SET lock_timeout = 100')
    async with opened(url) as store:
        await store.initialize()
        async with administrator.transaction():
            await administrator.execute("LOCK TABLE events IN EXCLUSIVE MODE")
            await refused(store, match="a lock was not to be had in time")
        assert (await store.append_event(draft())).event_version == 1


async def test_an_append_whose_client_fell_silent_is_ended_by_the_server(
    url: str, administrator: asyncpg.Connection
) -> None:
    async with opened(url, limit_s=LIMIT_S) as store:
        first = await store.append_event(draft())
        assert isinstance(store.storage, PostgresStorage)
        async with store.storage.pool.acquire() as connection:
            await connection.execute("BEGIN; SELECT hold_horizon(); SELECT nextval('event_positions')")
            later = await store.append_event(draft("order-2"))
            assert await store.horizon() == first.position
            assert await store.storage.oldest_append_s() > 0

            async def released() -> bool:
                return await store.horizon() >= later.position

            await until(released)
        assert await store.storage.oldest_append_s() == 0
        assert (await store.append_event(draft())).event_version == 2


async def test_a_read_only_server_is_read_and_takes_writes_again_without_a_restart(
    store: EventStore, administrator: asyncpg.Connection
) -> None:
    stored = await store.append_event(draft())
    await administrator.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    await administrator.execute("SELECT pg_reload_conf()")

    async def in_force() -> bool:
        """Every backend hears of it in its own time."""
        try:
            await asyncio.gather(*(store.append_event(draft("before")) for _ in range(4)))
        except UnavailableError:
            return True
        return False

    try:
        await until(in_force)
        await refused(store, match="takes no writes now")
        with pytest.raises(UnavailableError):
            async with store.storage.transaction() as transaction:
                await transaction.put(CHECKPOINTS, "a", {"position": 0})
        assert await store.get_events("order-1") == [stored]
    finally:
        await administrator.execute("SET default_transaction_read_only = off")
        await administrator.execute("ALTER SYSTEM RESET default_transaction_read_only")
        await administrator.execute("SELECT pg_reload_conf()")
    again = await once_available(lambda: store.append_event(draft()))
    assert again.event_version == 2


async def test_a_pool_in_use_makes_callers_wait_for_a_bounded_time(url: str) -> None:
    async with opened(url, pool_size=1) as store:
        async with store.storage.transaction():
            with pytest.raises(UnavailableError, match="no connection to the database within") as caught:
                await store.append_event(draft())
            assert not caught.value.outcome_unknown
        assert (await store.append_event(draft())).event_version == 1


async def test_a_server_that_takes_no_more_connections_serves_those_it_has(
    url: str, administrator: asyncpg.Connection
) -> None:
    async with opened(url) as owner:
        await owner.initialize()
    user = f"user_{uuid4().hex}"
    await administrator.execute(f"CREATE ROLE {user} LOGIN IN ROLE esm_writer CONNECTION LIMIT 1")
    async with opened(make_url(url).set(username=user).render_as_string()) as store:
        async with store.storage.transaction():
            with pytest.raises(UnavailableError, match="takes no more connections") as caught:
                await store.append_event(draft())
            assert not caught.value.outcome_unknown
        assert (await store.append_event(draft())).event_version == 1


async def test_a_server_that_shuts_down_and_comes_back_is_used_again(
    store: EventStore, administrator: asyncpg.Connection, server: Server
) -> None:
    await asyncio.gather(*(store.append_event(draft()) for _ in range(8)))
    await asyncio.to_thread(server.stop)
    with pytest.raises(UnavailableError) as caught:
        await store.append_event(draft())
    assert not caught.value.outcome_unknown
    await asyncio.to_thread(server.start)
    await asyncio.gather(*(store.append_event(draft()) for _ in range(8)))
    assert [event.event_version for event in await store.get_events("order-1")] == list(range(1, 17))


async def test_a_server_that_is_shutting_down_says_so(
    store: EventStore, url: str, administrator: asyncpg.Connection, server: Server
) -> None:
    await store.append_event(draft())
    stopping = asyncio.create_task(asyncio.to_thread(server.stop, signal.SIGTERM))  # waits for its clients

    async def served() -> None:
        async with opened(url) as another:
            await another.initialize()

    try:
        async with asyncio.timeout(30):
            with pytest.raises(UnavailableError, match="starting up or shutting down"):
                await forever(served)
        assert (await store.append_event(draft())).event_version == 2, "who is connected is served"
    finally:
        await store.close()
        await administrator.close()
        await stopping
        await asyncio.to_thread(server.start)
    assert (await store.append_event(draft())).event_version == 3


@contextmanager
def small_disk(size: str) -> Iterator[Path]:
    """A file system that is soon full; an expected failure where mounting is refused."""
    with tempfile.TemporaryDirectory(prefix="esm-disk-") as name:
        Path(name).chmod(0o755)
        options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", name]
        mounted = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
        if mounted.returncode != 0:
            pytest.xfail(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "-l", name], check=True)


async def test_a_full_disk_refuses_appends_whole_and_takes_them_again(
    administrator: asyncpg.Connection, server: Server
) -> None:
    name = f"small_{uuid4().hex}"
    with small_disk("14m") as disk:
        own(disk)
        await administrator.execute(f"CREATE TABLESPACE {name} LOCATION '{disk}'")
        await administrator.execute(f"CREATE DATABASE {name} TABLESPACE {name}")
        try:
            async with opened(server.url(name)) as store:
                await fill(store, disk)
        finally:
            await administrator.execute(f"DROP DATABASE {name} WITH (FORCE)")
            await administrator.execute(f"DROP TABLESPACE {name}")


async def fill(store: EventStore, disk: Path) -> None:
    """Append until the disk is full, make room, and go on."""
    room = disk / "room"
    await store.initialize()
    room.write_bytes(bytes(1 << 20))
    acknowledged: list[BaseEvent] = []
    text = os.urandom(4000).hex()  # nothing to compress

    async def append_until_full() -> UnavailableError:
        for number in range(200):
            batch = [draft(f"order-{number}", data={"text": text, "n": n}) for n in range(60)]
            try:
                acknowledged.extend(await store.append_events(batch))
            except UnavailableError as error:
                return error
        raise AssertionError("the disk is never full")

    error = await append_until_full()
    assert "disk is full" in str(error)
    assert error.retryable
    assert not error.outcome_unknown
    stored = {event.event_id async for event in store.get_all_events()}
    assert stored == {event.event_id for event in acknowledged}, "the refused batch left nothing"
    room.unlink()
    again = await store.append_events(drafts(3, "afterwards"))
    assert await store.get_events("afterwards") == again
