"""Running a named replay: its states and its position commit together, twice a second.

So a run that dies, is cancelled or fails can be resumed and comes to the result of an undisturbed one: a
handler made of pure folds goes on from its shadow's states; one that keeps states of its own makes them
again from the events before; a handler without state, which only a caller can force into a replay that
acts outside, may see the events since the last commit again. A stop asked for is obeyed within half a
second, whatever a handler or a pause is doing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from eventsourcing.errors import BusyError, EventSourcingError, UnavailableError
from eventsourcing.handlers import EventHandler
from eventsourcing.heartbeats import BEAT_S
from eventsourcing.plugins import replay_handlers
from eventsourcing.query import EventQuery
from eventsourcing.replay import EventReplay, ReplayResult
from eventsourcing.replays import ReplayJournal, ReplayRequest, progress_fields, result_of
from eventsourcing.shadows import Shadow, announce_shadows, remove_shadows, shadowed_replays
from eventsourcing.snapshots import restore_from_snapshot
from eventsourcing.store import EventStore

WATCH_S = 0.25
"""How often a run asks whether it is to stop."""

OnProgress = Callable[[dict[str, Any]], None]
ShouldStop = Callable[[], Awaitable[bool]]


async def run_replay(
    store: EventStore,
    replay_id: str,
    *,
    should_stop: ShouldStop | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Run the replay of a row into states of its own, or carry it on; return the row at its end.

    Raises NotFoundError for no such row, BusyError when another process took the row over. A replay that
    is not pending is returned as it is.
    """
    await store.initialize()
    journal, owner = ReplayJournal(store.storage), uuid4().hex
    row = await journal.take(replay_id, owner)
    if row is None:
        return await journal.get(replay_id) or {}
    await forget_old_shadows(store)
    run = _Run(store, journal, row, owner, on_progress)
    work = asyncio.create_task(run.work(), name=f"replay {replay_id}")
    watch = asyncio.create_task(run.watch(work, should_stop), name=f"watch of {replay_id}")
    try:
        status = await work
    except asyncio.CancelledError:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        if run.lost is not None:
            raise run.lost from None
        if not run.is_to_stop:
            await _ended(run, "interrupted")
            raise
        status = "cancelled"
    except Exception as error:
        await _ended(run, "failed", failure=str(error))
        raise
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
    return await _ended(run, status)


async def forget_old_shadows(store: EventStore) -> None:
    """Remove the states of replays that ended early seven days ago: they cannot be resumed any more."""
    journal = ReplayJournal(store.storage)
    for replay_id in await shadowed_replays(store.storage):
        if await journal.give_up(replay_id):
            await remove_shadows(store.storage, replay_id)


async def _ended(run: _Run, status: str, **fields: Any) -> dict[str, Any]:
    """Write the end into the row; where the store is away, the missing heartbeat tells it."""
    with contextlib.suppress(EventSourcingError):
        return await run.write(status=status, end_time=datetime.now(UTC), eta=None, **fields)
    return await run.journal.get(run.replay_id) or {}


@dataclass
class _Run:
    """One run at work on a row that it owns."""

    store: EventStore
    journal: ReplayJournal
    row: dict[str, Any]
    owner: str
    on_progress: OnProgress | None
    is_to_stop: bool = False
    lost: BusyError | None = None
    """That another process took the row over."""
    _shadows: list[Shadow] = field(default_factory=list)

    @property
    def replay_id(self) -> str:
        return str(self.row["replay_id"])

    async def watch(self, work: asyncio.Task[str], should_stop: ShouldStop | None) -> None:
        """Keep the heartbeat, and end the work once it is to stop, or is no longer ours."""
        beat = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                row = await self.journal.get(self.replay_id) or {}
                self.is_to_stop = bool(row.get("cancel_requested"))
                if time.monotonic() - beat >= BEAT_S:
                    beat = time.monotonic()
                    await self.write()
            except BusyError as error:
                self.lost = error
            except UnavailableError:
                continue  # the work meets it too, and the next look may not
            if not self.is_to_stop and should_stop is not None:
                self.is_to_stop = await should_stop()
            if self.is_to_stop or self.lost is not None:
                work.cancel()
                return

    async def write(self, **fields: Any) -> dict[str, Any]:
        """Change the row, with a heartbeat. Raises BusyError when it is no longer ours."""
        async with self.journal.storage.transaction() as transaction:
            return await self.journal.write(transaction, self.replay_id, self.owner, **fields)

    async def work(self) -> str:
        """Replay, and say what came of it; return the status."""
        request = ReplayRequest.model_validate(self.row["request"])
        handlers = [] if request.dry_run else self._handlers(request)
        query, result = request.query(), result_of(self.row)
        if result is None and request.from_snapshot and request.aggregate_id is not None:
            version = await restore_from_snapshot(
                self.store.storage, request.aggregate_id, handlers, up_to_version=request.to_version
            )
            result = ReplayResult(horizon=await self.store.horizon(), from_snapshot=version or None)
        if result is not None and result.from_snapshot:
            query = query.where(from_version=result.from_snapshot + 1)
        if result is not None and result.position:
            await self._make_again(request, query.where(to_position=result.position), handlers)
        if self._shadows:
            await announce_shadows(self.store.storage, self.replay_id, self._shadows)
        replay = EventReplay(self.store, request)
        for handler in handlers:
            replay.add_handler(handler, force=request.handlers is not None)
        result = await replay.replay(query, report=self._report, going_on=result)
        await self._commit(result)
        if result.stopped:
            return "failed" if result.stopping_errors else "cancelled"
        await self._conclude(request, result)
        return "completed"

    def _handlers(self, request: ReplayRequest) -> list[EventHandler]:
        """Twins of what was asked for: the shadow of a handler made of folds, the others afresh."""
        handlers: list[EventHandler] = []
        for handler in replay_handlers(request.handlers):
            if handler.folds():
                shadow = Shadow(handler, self.replay_id, self.store.storage)
                self._shadows.append(shadow)
                handlers.append(shadow)
            else:
                handlers.append(handler.fresh())
        return handlers

    async def _make_again(
        self, request: ReplayRequest, query: EventQuery, handlers: list[EventHandler]
    ) -> None:
        """Let handlers that keep states of their own see again what they saw before the interruption."""
        lost = [each for each in handlers if not isinstance(each, Shadow) and each.state() is not None]
        if not lost:
            return
        replay = EventReplay(self.store, request.model_copy(update={"stop_on_error": False}))
        for handler in lost:
            replay.add_handler(handler, force=True)
        await replay.replay(query)

    async def _report(self, result: ReplayResult) -> bool:
        row = await self._commit(result)
        if self.on_progress is not None:
            self.on_progress(row)
        return not row.get("cancel_requested")

    async def _commit(self, result: ReplayResult) -> dict[str, Any]:
        """Write the states that changed, and how far the replay is; together or not at all."""
        async with self.journal.storage.transaction() as transaction:
            fields = progress_fields(result)
            row = await self.journal.write(transaction, self.replay_id, self.owner, **fields)
            for shadow in self._shadows:
                await shadow.flush(transaction)
        for shadow in self._shadows:
            shadow.flushed()
        return row

    async def _conclude(self, request: ReplayRequest, result: ReplayResult) -> None:
        """Hash the states, hold them against the live ones, and remove them. Repeating it says the same."""
        hashes = self.row.get("concluded")
        if hashes is None:
            hashes = {shadow.name: await shadow.state_hash() for shadow in self._shadows}
            await self.write(concluded=hashes)
        difference = None
        if request.is_unfiltered and not request.dry_run:
            found = [await shadow.differences(result.horizon) for shadow in self._shadows]
            difference = {name: one.to_dict() for each in found for name, one in each.items()}
        await remove_shadows(self.store.storage, self.replay_id)
        await self.write(state_hashes=hashes | result.state_hashes, difference=difference, progress=100.0)
