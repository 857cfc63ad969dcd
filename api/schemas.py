"""What callers send and get: the bodies, filters and answers of both services, with examples.

They check form only; whether an event may be stored is the library's judgement.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Path
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    WithJsonSchema,
    model_validator,
)

from eventsourcing import ANY, NO_STREAM, BaseEvent, EventQuery, InvalidEventError, parse_event
from eventsourcing.canonical import utc
from eventsourcing.events import EventTypeName, Identifier
from eventsourcing.replays import ReplayRequest

MAX_VERSION = 2**31 - 1
MAX_POSITION = 2**63 - 1


def _moment(value: Any) -> datetime:
    if isinstance(value, datetime):
        return utc(value)
    try:
        # An unescaped "+" of an offset arrives as a space in a query string.
        return utc(datetime.fromisoformat(re.sub(r" (\d\d:?\d\d)$", r"+\1", value)))
    except (ValueError, TypeError, OverflowError):
        raise ValueError("must be a date and time (RFC 3339)") from None


def _expected_version(value: Any) -> int:
    named = {"any": ANY, "no_stream": NO_STREAM}
    if isinstance(value, str) and value in named:
        return named[value]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_VERSION:
        return value
    raise ValueError('must be a version from 0, "any" or "no_stream"')


def _split(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [part for item in value for part in str(item).split(",") if part]


Moment = Annotated[
    datetime, BeforeValidator(_moment), WithJsonSchema({"type": "string", "format": "date-time"})
]
"""RFC 3339; without an offset it is UTC."""

Version = Annotated[int, Field(ge=1, le=MAX_VERSION)]
Position = Annotated[int, Field(ge=0, le=MAX_POSITION)]

PathId = Annotated[Identifier, Path()]
"""An id in a path."""

Limit = Annotated[int, Field(ge=1, le=1000)]

EventTypes = Annotated[list[EventTypeName], BeforeValidator(_split)]
"""Repeated or separated by commas."""

ExpectedVersion = Annotated[
    int,
    BeforeValidator(_expected_version),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 0}, {"enum": ["any", "no_stream"]}], "default": "any"}
    ),
]


def examples(*shown: dict[str, Any]) -> ConfigDict:
    """The configuration of a model of which the documentation shows these."""
    return ConfigDict(json_schema_extra={"examples": [*shown]})


class Body(BaseModel):
    """What a caller sends: nothing beyond what is declared, and never told back."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class EventBody(Body):
    """An event to publish. A second call with the same event_id stores nothing and answers the same."""

    model_config = examples(
        {
            "event_type": "migration.started",
            "aggregate_id": "migration-123",
            "aggregate_type": "migration",
            "data": {
                "source_config": {"host": "source.example.com"},
                "target_config": {"host": "target.example.com"},
            },
        }
    )

    event_type: EventTypeName
    aggregate_id: Identifier
    aggregate_type: Identifier
    data: dict[str, Any]
    event_id: UUID | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    correlation_id: UUID | None = None
    causation_id: UUID | None = None
    timestamp: Moment | None = None
    expected_version: ExpectedVersion = ANY

    def draft(self, *, otherwise: UUID) -> BaseEvent:
        """The event of what was given; `otherwise` is its event_id when none was. Raises InvalidEventError
        naming the field."""
        if "backfilled" in self.metadata:  # what carries it is not told to anybody outside
            raise InvalidEventError("is the mark of a backfill", field="metadata.backfilled")
        given = self.model_fields_set
        fields = {name: value for name, value in self.__dict__.items() if name in given}
        fields.pop("expected_version", None)
        if self.timestamp is None:  # null says as little as nothing: a repeat is not held to the first one's
            fields.pop("timestamp", None)
        fields["event_id"] = self.event_id or otherwise
        return parse_event(fields, are_valid=True)


class EventOut(BaseModel):
    """An event as stored."""

    model_config = examples(
        {
            "event_id": "0199ab3c-5b1e-7a53-9d3e-2f1d6c1f4a10",
            "event_type": "migration.started",
            "aggregate_id": "migration-123",
            "aggregate_type": "migration",
            "event_version": 1,
            "timestamp": "2026-11-24T08:00:00Z",
            "correlation_id": "0199ab3c-5b1e-7a53-9d3e-2f1d6c1f4a11",
            "causation_id": "0199ab3c-5b1e-7a53-9d3e-2f1d6c1f4a12",
            "metadata": {},
            "data": {
                "source_config": {"host": "source.example.com"},
                "target_config": {"host": "target.example.com"},
                "started_at": "2026-11-24T08:00:00Z",
            },
            "position": 1,
            "recorded_at": "2026-11-24T08:00:00.001Z",
        }
    )

    event_id: UUID
    event_type: str
    aggregate_id: str
    aggregate_type: str
    event_version: int
    timestamp: datetime
    correlation_id: UUID | None
    causation_id: UUID | None
    metadata: dict[str, Any]
    data: dict[str, Any]
    position: int
    recorded_at: datetime


class BatchOut(BaseModel):
    """What a batch came to."""

    model_config = examples(
        {
            "message": "Published 1 events successfully",
            "event_ids": ["0199ab3c-5b1e-7a53-9d3e-2f1d6c1f4a10"],
        }
    )

    message: str
    event_ids: list[UUID]


class ReadParams(Body):
    """What every read takes."""

    min_position: Position | None = None
    """Wait until the answer reflects this position (an `ES-Position`), at most 5 seconds."""


class WaitParams(ReadParams):
    """What a read takes that can wait for the end of a job."""

    wait: Annotated[float, Field(ge=0, le=60)] = 0
    """Hold the answer back until the job has ended, for so many seconds at most."""


class PageParams(ReadParams):
    """What every read in pages takes."""

    limit: Limit = 100
    cursor: Annotated[str, Field(max_length=1000)] | None = None
    """From the `Link` of the page before."""


class EventFilters(PageParams):
    """Which events: all conditions given must hold; bounds are inclusive."""

    aggregate_id: Identifier | None = None
    event_types: EventTypes = Field(default_factory=list)
    correlation_id: UUID | None = None
    aggregate_type: Identifier | None = None
    from_timestamp: Moment | None = None
    to_timestamp: Moment | None = None
    from_version: Version | None = None
    to_version: Version | None = None
    order: Literal["asc", "desc"] = "asc"

    def query(self) -> EventQuery:
        """The filters as a query, without its page."""
        return EventQuery(
            aggregate_id=self.aggregate_id,
            event_types=tuple(self.event_types),
            aggregate_types=() if self.aggregate_type is None else (self.aggregate_type,),
            correlation_id=self.correlation_id,
            from_timestamp=self.from_timestamp,
            to_timestamp=self.to_timestamp,
            from_version=self.from_version,
            to_version=self.to_version,
            backwards=self.order == "desc",
        )


class StreamParams(Body):
    """Which events a stream sends, and from where."""

    event_types: EventTypes = Field(default_factory=list)
    aggregate_id: Identifier | None = None
    correlation_id: UUID | None = None
    from_timestamp: Moment | None = None
    after: Annotated[str, Field(pattern=r"^(now|\d{1,18})$")] | None = None
    """A position, or `now` for live events only; without it, from the first event."""

    def query(self) -> EventQuery:
        """The filters as a query."""
        return EventQuery(
            event_types=tuple(self.event_types),
            aggregate_id=self.aggregate_id,
            correlation_id=self.correlation_id,
            from_timestamp=self.from_timestamp,
        )


class ReplayBody(ReplayRequest):
    """A replay to start."""

    model_config = examples({"replay_type": "aggregate", "aggregate_id": "migration-123"})

    from_version: Version | None = None
    to_version: Version | None = None
    from_timestamp: Moment | None = None
    to_timestamp: Moment | None = None
    dry_run: StrictBool = False
    from_snapshot: StrictBool = False
    stop_on_error: StrictBool = False
    delay_between_batches: float = Field(default=0.0, ge=0, le=3600)
    retry_delay: float = Field(default=1.0, ge=0, le=3600)


class RebuildBody(Body):
    """How to rebuild a read model."""

    fresh: StrictBool = False
    """Start over instead of going on with an interrupted rebuild."""


class SnapshotBody(Body):
    """An aggregate to take a snapshot of."""

    model_config = examples({"aggregate_id": "migration-123", "up_to_version": 50})

    aggregate_id: Identifier
    up_to_version: Version | None = None


class SequenceBody(Body):
    """An aggregate, and the event types that it should have, in order; or a process model to keep to."""

    model_config = examples(
        {
            "aggregate_id": "migration-123",
            "expected_sequence": ["migration.started", "data.extracted", "migration.completed"],
        },
        {"aggregate_id": "migration-123", "model": "migration"},
    )

    aggregate_id: Identifier
    expected_sequence: Annotated[list[EventTypeName], Field(max_length=10_000)] | None = None
    model: Annotated[str, Field(min_length=1, max_length=100)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> SequenceBody:
        if (self.expected_sequence is None) == (self.model is None):
            raise ValueError("give either expected_sequence or model")
        return self


class Problem(BaseModel):
    """An error (RFC 9457)."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": "/problems/not-found",
                    "title": "Nothing is here",
                    "status": 404,
                    "detail": "Event not found",
                    "instance": "urn:uuid:0199ab3c-5b1e-7a53-9d3e-2f1d6c1f4a10",
                }
            ]
        },
    )

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list[dict[str, Any]] | None = None


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI responses of these error statuses."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": "A problem", "content": content} for status in statuses}
