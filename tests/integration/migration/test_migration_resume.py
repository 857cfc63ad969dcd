"""Resume: killed anywhere, then run again, gives the target and the events of an undisturbed run."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
import pytest

from eventsourcing import EventStore, EventStoreConfig
from eventsourcing.events import BaseEvent, RecordedEvent
from eventsourcing.query import EventQuery
from pipelines.migration import Progress
from tests.integration.migration.lab import Finished, Lab, all_events, comparable_events

REPOSITORY = Path(__file__).parents[3]


T = TypeVar("T")


class CrashError(Exception):
    """The process dies here."""


class CrashingLog:
    """An event store before which the process dies at the n-th append."""

    def __init__(self, store: EventStore, *, at_append: int, after_storing: bool) -> None:
        self._store, self._left, self._after = store, at_append, after_storing

    async def append_events(self, events: Sequence[BaseEvent]) -> list[RecordedEvent]:
        return await self._append(self._store.append_events(events))

    async def append_frame(self, frames: Any, *, name: str) -> object:
        return await self._append(self._store.append_frame(frames, name=name))

    async def _append(self, storing: Coroutine[Any, Any, T]) -> T:
        self._left -= 1
        if self._left == 0 and not self._after:
            storing.close()
            raise CrashError
        stored = await storing
        if self._left == 0:
            raise CrashError
        return stored

    def read(self, query: EventQuery) -> AsyncIterator[RecordedEvent]:
        return self._store.read(query)

    def read_frames(self, query: EventQuery) -> AsyncIterator[pl.DataFrame]:
        return self._store.read_frames(query)


def undisturbed(finished: Finished) -> tuple[dict[str, str], list[object]]:
    """What a run leaves that nothing disturbed."""
    return finished.lab.dump(), comparable_events(finished.events)


@pytest.mark.parametrize("stage", ["extract", "transform", "validate", "load", "verify"])
async def test_a_crash_in_any_stage(lab: Lab, finished: Finished, stage: str) -> None:
    def crash(progress: Progress) -> None:
        if progress.stage == stage and progress.entity == "users":
            raise CrashError

    async with EventStore(use_memory=True) as store:
        with pytest.raises(CrashError):
            await lab.migration(store, on_progress=crash).run()
        before = {event.event_id for event in await all_events(store)}
        await lab.migration(store).run()
        events = await all_events(store)
    assert before < {event.event_id for event in events}
    assert (lab.dump(), comparable_events(events)) == undisturbed(finished)


async def test_a_crash_at_every_append(lab: Lab, finished: Finished) -> None:
    async with EventStore(use_memory=True) as store:
        is_done = False
        for at_append in range(1, 60):
            log = CrashingLog(store, at_append=at_append, after_storing=at_append % 2 == 0)
            try:
                await lab.migration(log).run()
                is_done = True
                break
            except CrashError:
                continue
        events = await all_events(store)
    assert is_done
    assert (lab.dump(), comparable_events(events)) == undisturbed(finished)


async def test_a_crash_between_the_target_and_the_events(lab: Lab, finished: Finished) -> None:
    async with EventStore(use_memory=True) as store:
        for stage in ("start", "check_schema", "extract", "transform", "validate"):
            await getattr(lab.migration(store), stage)()
        with pytest.raises(CrashError):
            await lab.migration(CrashingLog(store, at_append=2, after_storing=False)).load()
        assert 0 < lab.rows("users") < 200
        await lab.migration(store).run()
        events = await all_events(store)
    assert (lab.dump(), comparable_events(events)) == undisturbed(finished)


@pytest.mark.parametrize("stage", ["extract", "load"])
async def test_a_run_that_an_earlier_version_began(lab: Lab, finished: Finished, stage: str) -> None:
    """Its manifest names one column as a table's key, and says whether a constraint folds case, not where."""

    def crash(progress: Progress) -> None:
        if progress.stage == stage and progress.entity == "users":
            raise CrashError

    async with EventStore(use_memory=True) as store:
        with pytest.raises(CrashError):
            await lab.migration(store, on_progress=crash).run()
        path = lab.work_dir / "migration-1" / "manifest.json"
        manifest = json.loads(path.read_bytes())
        for side in ("source_tables", "target_tables"):
            for table in manifest[side].values():
                (table["key"],) = table["key"]
                for unique in table["unique"]:
                    unique["folds_case"] = bool(unique.pop("folded"))
        path.write_text(json.dumps(manifest))
        await lab.migration(store).run()
        events = await all_events(store)
    assert (lab.dump(), comparable_events(events)) == undisturbed(finished)


CHILD = """
    import asyncio, os, signal, sys
    from pathlib import Path
    from eventsourcing import EventStore, EventStoreConfig
    from pipelines.migration import Migration, parse_mapping
    from pipelines.migration.legacy_panel import mapping_path

    source, target, events, work, stage = sys.argv[1:]
    mapping = parse_mapping(mapping_path().read_text().replace("rows: 1000", "rows: 60"))

    def kill(progress):
        if progress.stage == stage and progress.entity == "users":
            os.kill(os.getpid(), signal.SIGKILL)

    async def main():
        async with EventStore(EventStoreConfig(database_url=events)) as store:
            migration = Migration(
                mapping, source_url=source, target_url=target, store=store, work_dir=Path(work),
                migration_id="migration-1", secret="a configured secret", on_progress=kill,
            )
            await migration.run()
            await migration.rollback("again")

    asyncio.run(main())
"""


async def kill_at(lab: Lab, events_url: str, stage: str) -> None:
    """Run in a process of its own, which kills itself in the middle of the stage."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        textwrap.dedent(CHILD),
        *(lab.source_url, lab.target_url, events_url, str(lab.work_dir), stage),
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
    )
    assert await process.wait() == -signal.SIGKILL


async def test_kill_9_of_a_loading_and_of_an_undoing_process(
    lab: Lab, finished: Finished, database_url: str
) -> None:
    await kill_at(lab, database_url, "load")
    assert lab.rows("users") > 0
    async with EventStore(EventStoreConfig(database_url=database_url)) as store:
        await lab.migration(store).run()
        assert (lab.dump(), comparable_events(await all_events(store))) == undisturbed(finished)
        migrated = lab.rows("users")
    await kill_at(lab, database_url, "rollback")
    assert lab.rows("users") < migrated
    async with EventStore(EventStoreConfig(database_url=database_url)) as store:
        undone = await lab.migration(store).rollback("another reason, which comes too late")
        initiated, completed = await store.get_events("migration-1:rollback-1")
        stats = await store.get_event_stats()
    assert {table: rows.height for table, (rows, _) in lab.contents().items() if rows.height} == {}
    assert undone.facts["residual_diff"] == 0
    assert initiated.data["reason"] == "again"
    assert completed.data["success"]
    assert stats["events_by_type"]["user.rolled_back"] == migrated
