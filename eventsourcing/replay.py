"""EventReplay: run stored events through handlers again, snapshot an aggregate, check a sequence.

A replay reads up to the horizon of its start, in position order, so each aggregate in version order.
It calls replayable handlers only and publishes nothing: it has no outside effect.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any
from uuid import UUID

from eventsourcing.canonical import state_hash
from eventsourcing.config import EventReplayConfig
from eventsourcing.delivery import backoff, call_with_retry
from eventsourcing.errors import HandlerError, NotFoundError, UpcastError
from eventsourcing.events import RecordedEvent
from eventsourcing.failures import is_permanent
from eventsourcing.handlers import EventHandler
from eventsourcing.metrics import instruments
from eventsourcing.query import EventQuery
from eventsourcing.secrets import redact, secret_values
from eventsourcing.shadows import Shadow
from eventsourcing.snapshots import fold_aggregate, restore_from_snapshot, save_snapshot, snapshot_of
from eventsourcing.store import EventStore
from eventsourcing.unreadable import read_past_faults

MAX_ERRORS = 1000
"""How many errors a result keeps; `failed_events` counts all of them."""

READ = 2_000
"""How many events are read at a time where batches are smaller."""

REPORT_S = 0.5
"""How often a running replay reports and asks whether to stop."""

REPORT_EVENTS = 20_000
"""It reports no later than after so many events: what they change is in memory until then."""


@dataclass
class ReplayResult:
    """What a replay did. `success_rate` is 0 to 100, and 0.0 without events; `duration` in seconds."""

    start_time: datetime = field(default_factory=lambda: datetime.now(UTC))
    end_time: datetime | None = None
    total_events: int = 0
    processed_events: int = 0
    failed_events: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)
    """The first ones; `error_count` counts all of them, and an event may have one for each handler."""
    error_count: int = 0
    state_hashes: dict[str, str] = field(default_factory=dict)
    position: int = 0
    horizon: int = 0
    """Up to where the replay reads, fixed when it began."""
    progress: float = 0.0
    worked_s: float = 0.0
    """How long it worked, without the time between an interruption and its resumption."""
    stopped: bool = False
    stopping_errors: list[dict[str, Any]] = field(default_factory=list)
    """The errors on the event that ended the replay, which lies behind `position`."""
    from_snapshot: int | None = None
    """The version of the snapshot that an aggregate's replay began behind."""

    @property
    def success_rate(self) -> float:
        """The share of events that every handler took, in percent."""
        return 100.0 * self.processed_events / self.total_events if self.total_events else 0.0

    @property
    def duration(self) -> float:
        """Seconds from the start to the end, or to now."""
        return ((self.end_time or datetime.now(UTC)) - self.start_time).total_seconds()

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values."""
        return {
            "total_events": self.total_events,
            "processed_events": self.processed_events,
            "failed_events": self.failed_events,
            "success_rate": self.success_rate,
            "duration": self.duration,
            "start_time": self.start_time,
            "end_time": self.end_time,
            "errors": list(self.errors),
            "state_hashes": dict(self.state_hashes),
            "position": self.position,
            "from_snapshot": self.from_snapshot,
        }


Report = Callable[[ReplayResult], Awaitable[bool]]
"""Told about progress twice a second, or after `REPORT_EVENTS`; False asks the replay to stop."""


class EventReplay:
    """Replays of one store through the handlers added."""

    def __init__(self, store: EventStore, config: EventReplayConfig | None = None) -> None:
        self._store = store
        self._config = config or EventReplayConfig()
        self._handlers: list[EventHandler] = []

    def add_handler(self, handler: EventHandler, *, force: bool = False) -> None:
        """Add a handler. One that is not replayable is left out of every replay unless forced.

        Raises TypeError for a plain function: nobody knows what it does outside.
        """
        if not isinstance(handler, EventHandler):
            raise TypeError("a replay takes an EventHandler; plain functions are never replayed")
        if handler.replayable or force:
            self._handlers.append(handler)

    async def replay_all_events(
        self, from_timestamp: datetime | None = None, to_timestamp: datetime | None = None
    ) -> ReplayResult:
        """Replay everything, or what happened in a window of time, both ends inclusive."""
        return await self.replay(EventQuery(from_timestamp=from_timestamp, to_timestamp=to_timestamp))

    async def replay_aggregate_events(
        self,
        aggregate_id: str,
        from_version: int | None = None,
        to_version: int | None = None,
        *,
        from_snapshot: bool = False,
    ) -> ReplayResult:
        """Replay one aggregate, or the versions between two bounds, both inclusive.

        `from_snapshot` begins behind the newest snapshot within the bounds, if every handler can take its
        state over from it; `from_version` has no say then. The result tells which version that was.
        """
        version = 0
        if from_snapshot:
            await self._store.initialize()
            version = await restore_from_snapshot(
                self._store.storage, aggregate_id, self._handlers, up_to_version=to_version
            )
        query = EventQuery(
            aggregate_id=aggregate_id,
            from_version=version + 1 if version else from_version,
            to_version=to_version,
        )
        result = await self.replay(query)
        result.from_snapshot = version or None
        return result

    async def replay_events_by_type(
        self,
        event_types: Iterable[str],
        from_timestamp: datetime | None = None,
        to_timestamp: datetime | None = None,
    ) -> ReplayResult:
        """Replay the events of some types; none for no types."""
        types = (event_types,) if isinstance(event_types, str) else tuple(event_types)
        if not types:
            return ReplayResult(end_time=datetime.now(UTC))
        return await self.replay(
            EventQuery(event_types=types, from_timestamp=from_timestamp, to_timestamp=to_timestamp)
        )

    async def replay_events_by_correlation_id(self, correlation_id: UUID) -> ReplayResult:
        """Replay the events that carry a correlation."""
        return await self.replay(EventQuery(correlation_id=correlation_id))

    async def replay(
        self, query: EventQuery, *, report: Report | None = None, going_on: ReplayResult | None = None
    ) -> ReplayResult:
        """Replay the events of a query up to the horizon.

        A handler that fails is retried and then recorded as an error, and so is an event that cannot be
        read; `stop_on_error` ends the replay there, `stopped` says so. `going_on` is the result of a
        replay of the same query that ended early: it is carried on behind its position. Raises
        UnavailableError when the store is lost on the way.
        """
        await self._store.initialize()
        storage, config = self._store.storage, self._config
        result = going_on or ReplayResult(horizon=await storage.horizon())
        pace = _Pace(result, report)
        window = query.where(after_position=result.position) if result.position else query
        if query.aggregate_id is None and query.to_position is None:
            window = window.where(to_position=result.horizon)
        takers: dict[str, list[EventHandler]] = {}
        async for batch in read_past_faults(storage, window, batch_size=max(config.batch_size, READ)):
            for shadow in self._shadows():
                await shadow.prepare(batch.events)
            for place in range(0, len(batch.events), config.batch_size):
                if result.total_events and config.delay_between_batches:
                    await asyncio.sleep(config.delay_between_batches)
                events = batch.events[place : place + config.batch_size]
                await self._run_batch(events, batch.faults, result, takers)
                await pace.keep()
                if result.stopped:
                    break
            if result.stopped:
                break
        pace.end()
        result.state_hashes = {
            handler.name: state_hash(state)
            for handler in self._handlers
            if (state := handler.state()) is not None
        }
        return result

    def _shadows(self) -> list[Shadow]:
        return [handler for handler in self._handlers if isinstance(handler, Shadow)]

    async def _run_batch(
        self,
        events: Sequence[RecordedEvent],
        faults: Mapping[int, UpcastError],
        result: ReplayResult,
        takers: dict[str, list[EventHandler]],
    ) -> None:
        """`takers` remembers which handlers take a type. What is counted is what was done, should the replay
        be broken off between two events."""
        before = result.processed_events, result.failed_events
        counted = done = 0
        try:
            for event in events:
                handlers = takers.get(event.event_type)
                if handlers is None:
                    handlers = [each for each in self._handlers if each.can_handle(event.event_type)]
                    takers[event.event_type] = handlers
                failures: list[dict[str, Any]] = []
                if faults and (fault := faults.get(event.position)) is not None:
                    failures = [_error(event, None, fault, attempts=0)] if handlers else []
                else:
                    for handler in handlers:
                        try:
                            await handler.handle(event)
                        except Exception as error:  # noqa: BLE001 - the supervising loop, which records it
                            failures += await self._run_again(handler, event, error)
                if failures:
                    _passed(result, events[counted:done])
                    counted = done + 1
                    self._failed(result, event, failures)
                    if result.stopped:
                        return
                done += 1
        finally:
            _passed(result, events[counted:done])
            replayed = instruments().replayed
            replayed.labels("processed").inc(result.processed_events - before[0])
            replayed.labels("failed").inc(result.failed_events - before[1])

    def _failed(self, result: ReplayResult, event: RecordedEvent, failures: list[dict[str, Any]]) -> None:
        """Note an event that failed. One that ends the replay is not passed: to carry on begins with it."""
        if self._config.stop_on_error:
            result.stopped, result.stopping_errors = True, failures
            for shadow in self._shadows():
                shadow.undo()
        else:
            result.position = event.position
        result.total_events += 1
        result.failed_events += 1
        result.error_count += len(failures)
        result.errors += failures[: MAX_ERRORS - len(result.errors)]

    async def _run_again(
        self, handler: EventHandler, event: RecordedEvent, error: Exception
    ) -> list[dict[str, Any]]:
        """Retry after a first failure; the error that remains, if one does."""
        retries, delay = self._config.max_retries, self._config.retry_delay
        if is_permanent(error) or not retries:
            return [_error(event, handler.name, error, attempts=1)]
        await asyncio.sleep(backoff(1, delay))
        try:
            await call_with_retry(handler, event, retries=retries - 1, delay_s=delay * 2)
        except HandlerError as failure:
            cause = failure.__cause__ or failure
            return [_error(event, failure.handler, cause, attempts=failure.attempts + 1)]
        return []

    async def create_snapshot(self, aggregate_id: str, up_to_version: int | None = None) -> dict[str, Any]:
        """Fold an aggregate into its state, store that as a snapshot, and return it.

        {aggregate_id, version, position, snapshot_time, replay_result, state, state_hash, …}. A
        migration's state rolls up the events linked to it. `up_to_version` past the end means the
        last version. Raises NotFoundError for an aggregate without events; nothing is stored.
        """
        result = ReplayResult()
        folded = await fold_aggregate(self._store, aggregate_id, up_to_version, self._handlers)
        result.total_events = result.processed_events = folded.events
        result.position, result.progress, result.end_time = folded.position, 100.0, datetime.now(UTC)
        snapshot = {**snapshot_of(aggregate_id, folded), "replay_result": result.to_dict()}
        await save_snapshot(self._store.storage, snapshot, folded)
        return snapshot

    async def validate_event_sequence(
        self, aggregate_id: str, expected_sequence: Sequence[str]
    ) -> dict[str, Any]:
        """Compare an aggregate's event types with an expected sequence, index by index from 0.

        {aggregate_id, is_valid, expected_sequence, actual_sequence, differences: [{position, expected,
        actual}]}; a missing or surplus event is a difference with None on one side.
        """
        expected = [str(event_type) for event_type in expected_sequence]
        query = EventQuery(aggregate_id=aggregate_id)
        actual = [str(event.event_type) async for event in self._store.read(query)]
        differences = [
            {"position": place, "expected": wanted, "actual": found}
            for place, (wanted, found) in enumerate(zip_longest(expected, actual))
            if wanted != found
        ]
        return {
            "aggregate_id": aggregate_id,
            "is_valid": not differences,
            "expected_sequence": expected,
            "actual_sequence": actual,
            "differences": differences,
        }


def _passed(result: ReplayResult, events: Sequence[RecordedEvent]) -> None:
    """Note events that every handler took."""
    if events:
        result.position = events[-1].position
        result.total_events += len(events)
        result.processed_events += len(events)


async def require_events(store: EventStore, aggregate_id: str) -> None:
    """Raise NotFoundError for an aggregate without events."""
    async for _ in store.read(EventQuery(aggregate_id=aggregate_id, limit=1)):
        return
    raise NotFoundError("aggregate", aggregate_id)


class _Pace:
    """When a replay reports, how far it is, and how long it worked."""

    def __init__(self, result: ReplayResult, report: Report | None) -> None:
        self._result, self._report = result, report
        self._began = self._reported = time.monotonic()
        self._worked, self._told = result.worked_s, result.total_events

    async def keep(self) -> None:
        """After each batch."""
        result, now = self._result, time.monotonic()
        result.progress = min(100.0, 100.0 * result.position / max(result.horizon, 1))
        result.worked_s = self._worked + now - self._began
        due = now - self._reported >= REPORT_S or result.total_events - self._told >= REPORT_EVENTS
        if self._report is not None and due:
            self._reported, self._told = now, result.total_events
            result.stopped = not await self._report(result) or result.stopped

    def end(self) -> None:
        """After the last one."""
        self._result.worked_s = self._worked + time.monotonic() - self._began
        self._result.progress = self._result.progress if self._result.stopped else 100.0
        self._result.end_time = datetime.now(UTC)


def _error(
    event: RecordedEvent, handler: str | None, error: BaseException, *, attempts: int
) -> dict[str, Any]:
    return {
        "event_id": str(event.event_id),
        "event_type": str(event.event_type),
        "handler": handler,
        "error": redact(str(error), secret_values(event.data))[:1000],
        "attempts": attempts,
    }
