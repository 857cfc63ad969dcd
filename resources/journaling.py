"""Journaling: while something works on a migration, its row says so and how far, and a stop is obeyed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

from resources.migration_journal import BEAT_S, STEPS, MigrationJournal, percentage, this_process

_STEP_OF = {"schema": "check_schema"}
_COUNTED = {
    "extract": ("in",),
    "transform": ("filtered",),
    "validate": ("quarantined",),
    "load": ("inserted", "updated", "unchanged", "skipped"),
}
"""The counts of an entity that each stage adds to the row."""


class Progress(Protocol):
    """How far a stage is, in records of one entity."""

    @property
    def stage(self) -> str: ...
    @property
    def entity(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def waits(self) -> str: ...


class Journaling:
    """Keeps one row while one piece of work goes on."""

    def __init__(self, journal: MigrationJournal, migration_id: str, *, stop: Callable[[], None]) -> None:
        self.journal, self.migration_id = journal, migration_id
        self._stop = stop
        self._latest: dict[str, Any] = {}

    def progress(self, progress: Progress) -> None:
        """Take note of progress; called from any thread, and cheap."""
        step = _STEP_OF.get(progress.stage, progress.stage)
        noted: dict[str, Any] = {
            "current_step": step,
            "records": progress.done,
            "records_total": progress.total,
            "waits": progress.waits or None,
        }
        if step in STEPS:
            noted |= {
                "progress": percentage(step, progress.done, progress.total),
                "steps_completed": STEPS.index(step),
            }
        self._latest = {**noted, "entity": progress.entity}

    @asynccontextmanager
    async def during(self, **fields: Any) -> AsyncIterator[None]:
        """Write `fields`, then beat until the work is over, however it ends."""
        await self._beat(process=this_process(), **fields)
        beating = asyncio.create_task(self._beat_on())
        try:
            yield
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def step_done(self, stage: str, facts: Mapping[str, Any]) -> None:
        """A step is done: what it counted."""
        step = _STEP_OF.get(stage, stage)
        row = await self.journal.get(self.migration_id) or {}
        entities = {name: dict(counts) for name, counts in (row.get("entities") or {}).items()}
        for name, counts in _entities(facts).items():
            picked = {kind: counts[kind] for kind in _COUNTED.get(stage, ()) if kind in counts}
            entities[name] = {**entities.get(name, {}), **picked}
        await self.journal.update(
            self.migration_id,
            current_step=step,
            steps_completed=STEPS.index(step) + 1,
            progress=percentage(step, 1, 1),
            entities=entities,
            quarantined=sum(counts.get("quarantined", 0) for counts in entities.values()),
        )

    async def ended(self, status: str, **fields: Any) -> None:
        """The work is over; what becomes of the migration is said by the next one who takes it."""
        ended = {"status": status, "ended_at": datetime.now(UTC), "waits": None}
        await self.journal.update(self.migration_id, **ended, **fields)

    async def failed(self, failure: str, *, in_target: str | None) -> None:
        """The work failed, and `in_target` is how the run stands there, if that can be known. A run that is
        completed or rolled back stays that when a retry or a rollback of it is refused."""
        row = await self.journal.get(self.migration_id) or {}
        stands = in_target or row.get("status_before")
        status = stands if stands in ("completed", "rolled_back") else "failed"
        await self.ended(status, failure=failure)

    async def _beat(self, **fields: Any) -> None:
        latest, self._latest = self._latest, {}
        if await self.journal.beat(self.migration_id, **latest, **fields):
            self._stop()

    async def _beat_on(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            await self._beat()


def _entities(facts: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    for name, fact in facts.items():
        if name.endswith("_stats") and isinstance(fact, dict) and "entities" in fact:
            return dict(fact["entities"])
    return {}
