"""EventReplay: run stored events through handlers again, snapshot an aggregate, check a sequence.

A replay reads up to the horizon of its start, in position order, so each aggregate in version order.
It calls replayable handlers only and publishes nothing: it has no outside effect.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any
from uuid import UUID

from eventsourcing.canonical import state_hash
from eventsourcing.config import EventReplayConfig
from eventsourcing.delivery import call_with_retry
from eventsourcing.errors import HandlerError, NotFoundError
from eventsourcing.events import RecordedEvent
from eventsourcing.handlers import EventHandler
from eventsourcing.metrics import instruments
from eventsourcing.query import EventQuery
from eventsourcing.snapshots import fold_aggregate, restore_from_snapshot, save_snapshot, snapshot_of
from eventsourcing.store import EventStore

MAX_ERRORS = 1000
"""How many errors a result keeps; `failed_events` counts all of them."""

REPORT_S = 0.5
"""How often a running replay reports and asks whether to stop."""


@dataclass
class ReplayResult:
    """What a replay did. `success_rate` is 0 to 100, and 0.0 without events; `duration` in seconds."""

    start_time: datetime = field(default_factory=lambda: datetime.now(UTC))
    end_time: datetime | None = None
    total_events: int = 0
    processed_events: int = 0
    failed_events: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)
    state_hashes: dict[str, str] = field(default_factory=dict)
    position: int = 0
    progress: float = 0.0
    stopped: bool = False
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
        }


Report = Callable[[ReplayResult], Awaitable[bool]]
"""Told about progress at most twice a second; False asks the replay to stop."""


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

    async def replay(self, query: EventQuery, *, report: Report | None = None) -> ReplayResult:
        """Replay the events of a query up to the horizon.

        A handler that fails is retried and then recorded as an error; `stop_on_error` ends the replay
        there, `stopped` says so. Raises UnavailableError when the store is lost on the way.
        """
        result = ReplayResult()
        horizon = await self._store.horizon()
        reported = time.monotonic()
        takers: dict[str, list[EventHandler]] = {}
        window = query if query.aggregate_id is not None else query.where(to_position=horizon)
        async for batch in self._store.read_batches(window, batch_size=self._config.batch_size):
            if result.total_events and self._config.delay_between_batches:
                await asyncio.sleep(self._config.delay_between_batches)
            await self._run_batch(batch, result, takers)
            result.progress = min(100.0, 100.0 * result.position / max(horizon, 1))
            if report is not None and time.monotonic() - reported >= REPORT_S:
                reported = time.monotonic()
                result.stopped = result.stopped or not await report(result)
            if result.stopped:
                break
        result.state_hashes = {
            handler.name: state_hash(state)
            for handler in self._handlers
            if (state := handler.state()) is not None
        }
        result.progress = result.progress if result.stopped else 100.0
        result.end_time = datetime.now(UTC)
        return result

    async def _run_batch(
        self, batch: Sequence[RecordedEvent], result: ReplayResult, takers: dict[str, list[EventHandler]]
    ) -> None:
        """`takers` remembers which handlers take a type."""
        before = result.processed_events, result.failed_events
        try:
            await self._run_events(batch, result, takers)
        finally:
            replayed = instruments().replayed
            replayed.labels("processed").inc(result.processed_events - before[0])
            replayed.labels("failed").inc(result.failed_events - before[1])

    async def _run_events(
        self, batch: Sequence[RecordedEvent], result: ReplayResult, takers: dict[str, list[EventHandler]]
    ) -> None:
        for event in batch:
            handlers = takers.get(event.event_type)
            if handlers is None:
                handlers = [each for each in self._handlers if each.can_handle(event.event_type)]
                takers[event.event_type] = handlers
            failures = [error for handler in handlers if (error := await self._run(handler, event))]
            result.total_events += 1
            result.position = event.position
            if not failures:
                result.processed_events += 1
                continue
            result.failed_events += 1
            result.errors += failures[: MAX_ERRORS - len(result.errors)]
            if self._config.stop_on_error:
                result.stopped = True
                return

    async def _run(self, handler: EventHandler, event: RecordedEvent) -> dict[str, Any] | None:
        try:
            await call_with_retry(
                handler, event, retries=self._config.max_retries, delay_s=self._config.retry_delay
            )
        except HandlerError as error:
            return {
                "event_id": str(event.event_id),
                "event_type": str(event.event_type),
                "handler": error.handler,
                "error": str(error.__cause__ or error),
                "attempts": error.attempts,
            }
        return None

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


async def require_events(store: EventStore, aggregate_id: str) -> None:
    """Raise NotFoundError for an aggregate without events."""
    async for _ in store.read(EventQuery(aggregate_id=aggregate_id, limit=1)):
        return
    raise NotFoundError("aggregate", aggregate_id)
