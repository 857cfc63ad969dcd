"""A store restored to an earlier state hands out no position that a reader has seen, once it is rebased."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from eventsourcing import CursorAheadError, EventStore, UnavailableError
from eventsourcing.storage.base import CHECKPOINTS, LOST_POSITIONS
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.storage.postgres_append import COPY_FROM
from eventsourcing.storage.rebase import Rebase, rebase
from tests.conformance.history import Reading, judge
from tests.conformance.traffic import entry_of, write_through_store
from tests.factories import draft, drafts
from tests.faults.proxy import proxy_to
from tests.servers import NEWEST, Server, as_server, copy_of, server_of
from tests.waiting import once_available, until

ROOT = Path(__file__).parents[2]
KEPT, LOST = 10, 5


async def read_on(store: EventStore, reading: Reading) -> None:
    """Show a reader what lies behind the position that it has reached."""
    async for event in store.get_all_events(after_position=reading.reached):
        reading.take([entry_of(event)], event.position)


async def missed(store: EventStore, reading: Reading) -> int:
    """How many of the events that are stored now the reader was not shown on its way."""
    await read_on(store, reading)
    stored = [entry_of(event) async for event in store.get_all_events()]
    return judge(stored, set(), [reading]).missed


@pytest.fixture
async def reading(url: str, server: Server) -> AsyncIterator[Reading]:
    """A reader of a store that was then restored to the state before the last events it was shown."""
    reading, name = Reading("reader"), url.split("?")[0].rsplit("/", 1)[1]
    psql = ("-h", str(server.directory), "-U", "postgres")
    async with EventStore(storage=PostgresStorage(url)) as store:
        await store.append_events(drafts(KEPT))
    server.run("createdb", *psql, "--template", name, f"backup_{name}")
    async with EventStore(storage=PostgresStorage(url)) as store:
        await store.append_events(drafts(LOST, "lost"))
        await read_on(store, reading)
    assert reading.reached == KEPT + LOST
    server.run("dropdb", *psql, name)
    server.run("createdb", *psql, "--template", f"backup_{name}", name)
    yield reading
    server.run("dropdb", *psql, f"backup_{name}")


async def test_planted_without_a_rebase_a_reader_misses_what_gets_its_positions_again(
    url: str, reading: Reading
) -> None:
    async with EventStore(storage=PostgresStorage(url)) as store:
        with pytest.raises(CursorAheadError):
            await read_on(store, reading)
        await store.append_events(drafts(LOST + 3, "new"))
        assert await missed(store, reading) == LOST


async def test_after_a_rebase_a_reader_goes_on_and_sees_every_new_event(url: str, reading: Reading) -> None:
    seen = reading.reached
    reading.shown = [entry for entry in reading.shown if entry.position <= KEPT]
    assert await rebase(url, seen=seen, dry_run=True) == await rebase(url, seen=seen)
    async with EventStore(storage=PostgresStorage(url)) as store:
        assert await store.storage.head() == seen
        await read_on(store, reading)
        stored = await store.append_events(drafts(LOST + 3, "new"))
        assert [event.position for event in stored] == list(range(seen + 1, seen + LOST + 4))
        assert await missed(store, reading) == 0
        with pytest.raises(CursorAheadError):
            _ = [event async for event in store.get_all_events(after_position=stored[-1].position + 1)]


async def test_a_rebase_records_what_was_lost_and_repeating_it_changes_nothing(
    url: str, reading: Reading
) -> None:
    seen = reading.reached
    done = await rebase(url, seen=seen)
    assert done == Rebase(head=KEPT, checkpoint=0, seen=seen, first=KEPT + 1, last=seen)
    assert await rebase(url, seen=seen) == Rebase(head=seen, checkpoint=0, seen=seen)
    async with EventStore(storage=PostgresStorage(url)) as store:
        async with store.storage.transaction() as transaction:
            [(_, record)] = await transaction.scan(LOST_POSITIONS)
        assert (record["first"], record["last"]) == (KEPT + 1, seen)
        stored = await store.append_event(draft("new"))
    assert (await rebase(url, seen=seen)).last is None
    again = await rebase(url, seen=stored.position + 4)
    assert (again.first, again.last) == (stored.position + 1, stored.position + 4)


async def test_a_dry_run_changes_nothing(url: str, reading: Reading) -> None:
    await rebase(url, seen=reading.reached, dry_run=True)
    async with EventStore(storage=PostgresStorage(url)) as store:
        assert await store.storage.head() == KEPT
        assert (await store.append_event(draft())).position == KEPT + 1


async def test_checkpoints_above_the_head_refuse_everything_until_the_rebase(
    url: str, administrator: asyncpg.Connection
) -> None:
    async with EventStore(storage=PostgresStorage(url)) as store:
        await store.append_events(drafts(KEPT))
        async with store.storage.transaction() as transaction:
            await transaction.put(CHECKPOINTS, "a", {"position": KEPT})
            await transaction.put(CHECKPOINTS, "b", {"position": 1})
    await administrator.execute(
        "ALTER TABLE events DISABLE TRIGGER USER; DELETE FROM events WHERE position > 4"
    )
    await administrator.execute("SELECT setval('event_positions', 4)")
    for refused in (
        EventStore(storage=PostgresStorage(url)).append_event(draft()),
        EventStore(storage=PostgresStorage(url)).horizon(),
    ):
        with pytest.raises(CursorAheadError, match=r"docs/guides/backup-and-restore\.md") as caught:
            await refused
        assert (caught.value.cursor, caught.value.head) == (KEPT, 4)
    assert (await rebase(url)).last == KEPT
    async with EventStore(storage=PostgresStorage(url)) as store:
        assert (await store.append_event(draft("new"))).position == KEPT + 1


async def test_a_rebase_while_others_append_gives_no_position_twice(url: str) -> None:
    async with EventStore(storage=PostgresStorage(url)) as store:
        writers = [
            asyncio.ensure_future(write_through_store(store, appends=12, delay_s=0.002, seed=n))
            for n in range(3)
        ]
        writers.append(asyncio.ensure_future(write_copies(store)))
        reading, ranges = Reading("reader"), []
        while not all(writer.done() for writer in writers):
            ranges.append(await rebase(url, seen=await store.storage.head() + 50))
            await read_on(store, reading)
        acknowledged = set().union(*(writer.result() for writer in writers))
        await read_on(store, reading)
        stored = [entry_of(event) async for event in store.get_all_events()]
    lost = {place for done in ranges if done.first for place in range(done.first, (done.last or 0) + 1)}
    assert judge(stored, acknowledged, [reading]).sound
    assert len(lost) > 100
    assert not lost & {entry.position for entry in stored}


async def write_copies(store: EventStore) -> set[UUID]:
    """Append what is copied in: it draws its positions before it touches the table."""
    stored = [await store.append_events(drafts(COPY_FROM, f"copy-{n}")) for n in range(5)]
    return {event.event_id for batch in stored for event in batch}


async def test_a_process_that_saw_more_than_the_new_primary_holds_refuses_to_go_on() -> None:
    with server_of(NEWEST) as primary:
        primary.start()
        with copy_of(primary, "-R") as standby:
            standby.start()
            async with proxy_to(primary.socket) as proxy:
                storage = PostgresStorage(proxy.through(primary.url()), append_timeout_s=2)
                async with EventStore(storage=storage) as store:
                    await store.append_events(drafts(KEPT))
                    await until(lambda: replicated(standby))
                    with pytest.raises(UnavailableError, match="standby"):
                        await EventStore(storage=PostgresStorage(standby.url())).horizon()
                    standby.stop()
                    lost = await store.append_events(drafts(LOST, "lost"))
                    primary.kill()
                    standby.start()
                    standby.run("pg_ctl", "promote", "-w", "-D", standby.data)
                    proxy.redirect(standby.socket)
                    for call in (store.append_event(draft("new")), store.horizon()):
                        with pytest.raises(CursorAheadError) as caught:
                            await call
                        assert (caught.value.cursor, caught.value.head) == (KEPT + LOST, KEPT)
                    await rebase(standby.url(), seen=lost[-1].position)
                    stored = await once_available(lambda: store.append_event(draft("new")))
                    assert stored.position > lost[-1].position


async def replicated(standby: Server) -> bool:
    connection = await asyncpg.connect(standby.url().replace("+asyncpg", ""))
    try:
        exists = await connection.fetchval("SELECT to_regclass('events')")
        return bool(exists and await connection.fetchval("SELECT count(*) FROM events") == KEPT)
    finally:
        await connection.close()


async def test_the_runbook_does_what_it_says() -> None:
    guide = (ROOT / "docs" / "guides" / "backup-and-restore.md").read_text("utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", guide, re.S)
    with server_of(NEWEST) as server:
        configuration = f"unix_socket_directories = '{server.directory}'\nlisten_addresses = ''\n"
        with (server.data / "postgresql.auto.conf").open("a") as file:
            file.write(configuration)
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{server.bin}:{os.environ['PATH']}",
            "PGHOST": str(server.directory),
            "PGUSER": "postgres",
            "PGDATA": str(server.data),
            "BACKUP": str(server.directory / "backup"),
            "DATABASE_URL": server.url(),
            "HIGHEST_SEEN": str(KEPT + LOST),
            "ESM_DATA_DIR": str(server.directory / "esm"),
        }

        def run(block: str) -> str:
            who = {} if "esm " in block else as_server()
            done = subprocess.run(
                ["bash", "-euc", block], env=environment, capture_output=True, text=True, check=False, **who
            )
            assert done.returncode == 0, done.stdout + done.stderr
            printed: str = done.stdout
            return printed

        backup, restore, rebasing, going_on = blocks
        server.start()
        async with EventStore(storage=PostgresStorage(server.url())) as store:
            await store.append_events(drafts(KEPT))
            run(backup)
            await store.append_events(drafts(LOST, "lost"))
        run(restore)
        try:
            printed = run(rebasing)
            assert f"Positions {KEPT + 1} to {KEPT + LOST} would be recorded as lost" in printed
            assert f"Positions {KEPT + 1} to {KEPT + LOST} are recorded as lost" in printed
            assert "order.placed" in run(going_on)
            async with EventStore(storage=PostgresStorage(server.url())) as store:
                assert (await store.append_event(draft())).position == KEPT + LOST + 1
        finally:
            server.run("pg_ctl", "stop", "-D", server.data, "-m", "immediate")
