"""Announcing: a run's events, with ids that a resumed run makes again.

All events of a run share one correlation. A stage's event is caused by that of the stage before; a
record's event by the stage that prepared it. An event is appended after what it speaks of is durable,
and appending it again changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

import polars as pl

from eventsourcing.canonical import encode
from eventsourcing.catalogue import (
    DataExtractedEvent,
    DataImportedEvent,
    DataTransformedEvent,
    DataValidatedEvent,
    DatetimeConvertedEvent,
    MigrationCompletedEvent,
    MigrationFailedEvent,
    MigrationStartedEvent,
    SchemaCompatibilityCheckedEvent,
    UUIDTransformedEvent,
)
from eventsourcing.errors import EventSourcingError
from eventsourcing.events import (
    RESERVED_METADATA,
    BaseEvent,
    RecordedEvent,
    TypedEvent,
    deterministic_event_id,
)
from eventsourcing.query import EventQuery
from pipelines.migration.manifest import StageOutcome
from pipelines.migration.worktables import RunRow

BATCH = 1000
"""Events in one append."""

STAGE_EVENTS: dict[str, type[TypedEvent]] = {
    "start": MigrationStartedEvent,
    "schema": SchemaCompatibilityCheckedEvent,
    "extract": DataExtractedEvent,
    "transform": DataTransformedEvent,
    "validate": DataValidatedEvent,
    "load": DataImportedEvent,
    "complete": MigrationCompletedEvent,
}
_CAUSES = {
    "schema": "start",
    "extract": "schema",
    "transform": "extract",
    "validate": "transform",
    "load": "validate",
    "complete": "load",
}
"""Which stage's event causes a stage's event."""

_COUNTED = {"uuid": "transformation", "datetime": "conversion"}


class EventLog(Protocol):
    """What the engine needs of an event store."""

    def read(self, query: EventQuery) -> AsyncIterator[RecordedEvent]:
        """The stored events that match, in order."""

    def read_frames(self, query: EventQuery) -> AsyncIterator[pl.DataFrame]:
        """The same as columns (`eventsourcing.event_columns`); the verification folds them."""

    async def append_events(self, events: Sequence[BaseEvent]) -> list[RecordedEvent]:
        """Store all events or none; one whose event_id is stored comes back as stored."""

    async def append_frame(self, frames: Any, *, name: str) -> object:
        """Store the events of a frame; repeating the call under its name stores what is missing."""


class Announcer:
    """Makes and appends the events of one run."""

    def __init__(
        self,
        log: EventLog,
        row: RunRow,
        metadata: Mapping[str, Any],
        outcomes: Mapping[str, StageOutcome] | None = None,
        *,
        retry: int = 1,
    ) -> None:
        """`retry` is the number of the attempt (`attempts.py`): 1 is the run itself."""
        self._log, self._row, self._retry = log, row, retry
        self._outcomes = {} if outcomes is None else outcomes
        current = {key: value for key, value in metadata.items() if key in RESERVED_METADATA}
        self.metadata = {**row.metadata, **current}

    def event_id(self, *parts: str) -> UUID:
        """The id that these parts have in this run, always."""
        return deterministic_event_id(self._row.started_at, self._row.migration_id, *parts)

    def stage_id(self, stage: str) -> UUID:
        """The id of a stage's event."""
        return self.event_id(*self._stage_parts(stage))

    @property
    def stream(self) -> str:
        """The stream of the stages' events: the migration's own, or that of its n-th attempt."""
        return self._row.migration_id + (f":attempt-{self._retry}" if self._retry > 1 else "")

    def retry_parts(self) -> tuple[str, ...]:
        """What tells the ids of an attempt's events from those of the run itself."""
        return (f"retry-{self._retry}",) if self._retry > 1 else ()

    def _stage_parts(self, stage: str) -> tuple[str, ...]:
        return ("stage", stage, *self.retry_parts(), *self.attempt_of(stage))

    def attempt_of(self, stage: str) -> tuple[str, ...]:
        """What tells the ids of a stage's events from those of the stage as it was before a rollback."""
        done = self._outcomes.get(stage)
        attempt = done.attempt if done is not None else self._row.attempt
        return (f"attempt-{attempt}",) if attempt else ()

    def envelope(self, *parts: str, cause: UUID | None, at: datetime) -> dict[str, Any]:
        """The fields that every event of the run has."""
        return {
            "event_id": self.event_id(*parts),
            "correlation_id": self._row.correlation_id,
            "causation_id": cause,
            "metadata": self.metadata,
            "timestamp": at,
        }

    async def stage(self, outcome: StageOutcome) -> None:
        """Append the event of a stage that is done."""
        await self._log.append_events([self.stage_event(outcome)])

    def stage_event(self, outcome: StageOutcome) -> TypedEvent:
        """The event of a stage, in the stream of the migration; the schema check has its own."""
        cls, stage = STAGE_EVENTS[outcome.stage], outcome.stage
        stream = self.stream + (":schema" if stage == "schema" else "")
        cause = self.stage_id(_CAUSES[stage]) if stage in _CAUSES else None
        facts = outcome.facts
        if self._retry > 1:
            facts = {**facts, "migration_id": self._row.migration_id, "attempt": self._retry}
            cause = cause or self.event_id("stage", "complete")
        return cls(
            aggregate_id=stream,
            data=facts,
            **self.envelope(*self._stage_parts(stage), cause=cause, at=outcome.at),
        )

    def conversions(self, outcome: StageOutcome) -> Iterator[BaseEvent]:
        """One event for each format pair of the transform stage, in a stream of their kind."""
        classes: dict[str, type[TypedEvent]] = {
            "uuid": UUIDTransformedEvent,
            "datetime": DatetimeConvertedEvent,
        }
        for item in outcome.facts["transformation_stats"]["conversions"]:
            formats = {key: item[key] for key in ("source_format", "target_format")}
            stream = f"{self.stream}:{item['kind']}"
            parts = (stream, *formats.values(), *self.attempt_of("transform"))
            yield classes[item["kind"]](
                aggregate_id=stream,
                data={**formats, f"{_COUNTED[item['kind']]}_count": item["count"]},
                **self.envelope(*parts, cause=self.stage_id("extract"), at=outcome.at),
            )

    async def failed(self, error: Exception) -> None:
        """Append that the run failed: by which error, at which stage, and whether it can go on.

        The message of an error that is not ours may hold anything, so only its name is told.
        """
        ours = isinstance(error, EventSourcingError)
        details = {
            "stage": getattr(error, "stage", "") or self._row.stage,
            "error": type(error).__name__,
            "resumable": bool(getattr(error, "resumable", getattr(error, "retryable", True))),
        }
        fields: dict[str, Any] = {
            "aggregate_id": self.stream,
            "error_message": str(error) if ours else type(error).__name__,
            "error_details": details,
            "correlation_id": self._row.correlation_id,
            "causation_id": self.stage_id(self._row.stage if self._row.stage in STAGE_EVENTS else "load"),
            "metadata": self.metadata,
        }
        await self._log.append_events([MigrationFailedEvent(**fields)])

    def frame_name(self, *parts: str) -> str:
        """The name of a frame of events within the run, of at most 225 characters."""
        place = hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:24]
        return f"{self._row.migration_id[:200]}:{place}"

    async def append_frame(self, frame: pl.DataFrame, name: str) -> None:
        """Append the events of a frame (see `eventframes`).

        Under another metadata the same events go by another name: the store compares whole frames first.
        """
        told = hashlib.sha256(encode(self.metadata)).hexdigest()[:12]
        await self._log.append_frame(frame, name=f"{name}:{told}")

    async def append(self, events: Iterable[BaseEvent]) -> None:
        """Append any events, a thousand at a time."""
        batch: list[BaseEvent] = []
        for event in events:
            batch.append(event)
            if len(batch) == BATCH:
                await self._log.append_events(batch)
                batch = []
        if batch:
            await self._log.append_events(batch)
