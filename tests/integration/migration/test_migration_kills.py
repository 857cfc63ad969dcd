"""`kill -9` at random moments of a run and of a rollback: resumed, they end as if undisturbed."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from eventsourcing import EventStore, EventStoreConfig
from eventsourcing.storage.embedded import EmbeddedPostgres
from eventsourcing.storage.upgrades import upgrade
from pipelines.migration.errors import MigrationError
from pipelines.migration.legacy_panel import create_target_schema, generate_legacy_panel
from tests.integration.migration.child import migration
from tests.integration.migration.lab import Lab, hash_of_events, small_chunks

REPOSITORY = Path(__file__).parents[3]
REDRAWS = 20
"""How often a moment is drawn again because the process was done before it."""


@dataclass(frozen=True)
class Size:
    """How many users, in chunks of how many, are killed at how many moments."""

    users: int
    chunk_rows: int
    moments: int


SHORT, LONG = Size(2_000, 250, 3), Size(50_000, 2_500, 50)
SIZES = [
    pytest.param(SHORT, id="short"),
    pytest.param(LONG, id="long", marks=[pytest.mark.chaos, pytest.mark.timeout(7200)]),
]
Result = tuple[dict[str, str], str]


@dataclass
class Scene:
    """One target, one event store, one work folder."""

    size: Size
    source: str
    target: str
    events: str
    work: Path

    async def child(self, action: str, *, kill_after_s: float | None = None) -> float | None:
        """Run it in a process of its own; its seconds, or None when it was killed before its end."""
        arguments = (action, self.source, self.target, self.events, str(self.work), str(self.size.chunk_rows))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tests.integration.migration.child", *arguments),
            cwd=REPOSITORY,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"begun\n"
        began = time.monotonic()
        try:
            await asyncio.wait_for(process.wait(), kill_after_s)
        except TimeoutError:
            process.kill()
        code = await process.wait()
        assert code in (0, -signal.SIGKILL)
        return time.monotonic() - began if code == 0 else None

    def reached(self) -> str:
        """How far the killed process had come, in words."""
        lab = Lab(self.source, self.target, self.work, small_chunks())
        if not lab.execute("SELECT to_regclass('mig_run')")[0][0]:
            return "nothing was written yet"
        chunks = "(SELECT count(*) FROM mig_chunk), (SELECT count(*) FROM mig_chunk WHERE undone_by > 0)"
        runs = lab.execute(f"SELECT status, stage, {chunks} FROM mig_run")
        return ", ".join(
            f"{status} after {stage}, {loaded} chunks loaded, {undone} undone"
            for status, stage, loaded, undone in runs
        )

    async def resume(self, action: str) -> None:
        """Go on in this process until it is done."""
        async with self.store() as store:
            made = migration(store, self.source, self.target, self.work, self.size.chunk_rows)
            try:
                await (made.run() if action == "run" else made.rollback("a rehearsal"))
            except MigrationError as error:
                if "rolled back already" not in str(error):  # else it was killed after its last commit
                    raise

    async def result(self) -> Result:
        """The hash of each table of the target, and that of the events."""
        async with self.store() as store:
            told = await hash_of_events(store)
        return Lab(self.source, self.target, self.work, small_chunks()).dump(), told

    @asynccontextmanager
    async def store(self) -> AsyncIterator[EventStore]:
        async with EventStore(EventStoreConfig(database_url=self.events)) as store:
            yield store


class Stage:
    """Makes scenes: databases copied from others, dropped when they were used."""

    def __init__(self, server: EmbeddedPostgres, folder: Path) -> None:
        self.server, self.folder = server, folder
        self._engine = create_engine(
            server.url("postgres", driver="psycopg2"), poolclass=NullPool, isolation_level="AUTOCOMMIT"
        )

    def _administer(self, statement: str) -> None:
        with self._engine.connect() as connection:
            connection.execute(text(statement))

    @contextmanager
    def scene(self, size: Size, source: str, like: Scene | None = None) -> Iterator[Scene]:
        """A scene like another one, or a fresh one."""
        names = [f"kill_{uuid4().hex}" for _ in range(2)]
        for name, url in zip(names, (like.target, like.events) if like else ("", ""), strict=True):
            template = f" TEMPLATE {url.rpartition('/')[2].partition('?')[0]}" if url else ""
            self._administer(f"CREATE DATABASE {name}{template}")
        work = self.folder / names[0]
        if like is not None and like.work.exists():
            shutil.copytree(like.work, work)
        yield Scene(size, source, self.server.url(names[0]), self.server.url(names[1]), work)
        for name in names:
            self._administer(f"DROP DATABASE {name} WITH (FORCE)")
        shutil.rmtree(work, ignore_errors=True)


@pytest.fixture
def stage(postgres_server: EmbeddedPostgres, tmp_path: Path) -> Stage:
    return Stage(postgres_server, tmp_path)


@pytest.fixture
def panel_of(tmp_path: Path) -> Callable[[int], str]:
    def make(users: int) -> str:
        generate_legacy_panel(tmp_path / "legacy.db", users=users)
        return f"sqlite:///{tmp_path / 'legacy.db'}"

    return make


@pytest.mark.parametrize("size", SIZES)
async def test_a_run_that_is_killed_anywhere_ends_like_an_undisturbed_one(
    size: Size, stage: Stage, panel_of: Callable[[int], str]
) -> None:
    with stage.scene(size, panel_of(size.users)) as empty:
        create_target_schema(empty.target)
        await upgrade(empty.events)
        with stage.scene(size, empty.source, empty) as undisturbed:
            seconds = await undisturbed.child("run")
            expected = await undisturbed.result()
        assert seconds is not None
        await killed_at_moments(stage, empty, "run", expected, seconds)


@pytest.mark.parametrize("size", SIZES)
async def test_a_rollback_that_is_killed_anywhere_ends_like_an_undisturbed_one(
    size: Size, stage: Stage, panel_of: Callable[[int], str]
) -> None:
    with stage.scene(size, panel_of(size.users)) as full:
        create_target_schema(full.target)
        before = Lab(full.source, full.target, full.work, small_chunks()).dump()
        await full.resume("run")
        with stage.scene(size, full.source, full) as undisturbed:
            seconds = await undisturbed.child("rollback")
            expected = await undisturbed.result()
        assert seconds is not None
        assert expected[0] == before
        await killed_at_moments(stage, full, "rollback", expected, seconds)


async def killed_at_moments(
    stage: Stage, begin: Scene, action: str, expected: Result, seconds: float
) -> None:
    """Begin again and again, each time killed at another moment, and resume."""
    chance = random.Random(7)
    for moment in range(begin.size.moments):
        for _ in range(REDRAWS):
            after_s = chance.uniform(0, seconds)
            with stage.scene(begin.size, begin.source, begin) as scene:
                if await scene.child(action, kill_after_s=after_s) is not None:
                    continue
                print(f"moment {moment + 1}: {action} killed after {after_s:.2f} s, {scene.reached()}")  # noqa: T201 - whoever watches the long loop sees what was hit
                await scene.resume(action)
                assert await scene.result() == expected, f"moment {moment}: killed after {after_s:.3f} s"
            break
        else:
            pytest.fail("the process was always done before it could be killed")
