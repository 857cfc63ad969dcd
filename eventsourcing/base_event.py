"""The event as its author states it: its type, its ids, and exactly the published fields."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Self
from uuid import UUID

import uuid_utils.compat
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from eventsourcing.canonical import utc

RESERVED_METADATA = frozenset({"traceparent", "dagster_run_id", "backfilled", "schema_version", "region"})
"""Keys of `metadata` that belong to the system; everything else in it is the caller's."""

MAX_EVENT_BYTES = 768 * 1024
"""The largest event, payload and metadata encoded together."""


class EventType(StrEnum):
    """The types of our own events. Teams register theirs beside them under their own strings."""

    MIGRATION_STARTED = "migration.started"
    MIGRATION_COMPLETED = "migration.completed"
    MIGRATION_FAILED = "migration.failed"
    DATA_EXTRACTED = "data.extracted"
    DATA_TRANSFORMED = "data.transformed"
    DATA_VALIDATED = "data.validated"
    DATA_IMPORTED = "data.imported"
    USER_MIGRATED = "user.migrated"
    ADMIN_MIGRATED = "admin.migrated"
    ROLLBACK_INITIATED = "rollback.initiated"
    ROLLBACK_COMPLETED = "rollback.completed"
    SCHEMA_COMPATIBILITY_CHECKED = "schema.compatibility.checked"
    UUID_TRANSFORMED = "uuid.transformed"
    DATETIME_CONVERTED = "datetime.converted"
    RECORD_QUARANTINED = "record.quarantined"
    RECORD_RELEASED = "record.released"
    USER_ROLLED_BACK = "user.rolled_back"
    ADMIN_ROLLED_BACK = "admin.rolled_back"
    CUTOVER_CHANGED = "cutover.changed"


_TYPE_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@lru_cache(maxsize=1024)
def known_type(value: str) -> str:
    """A well-formed event type; one of ours becomes its member. Raises ValueError for another form."""
    if not _TYPE_PATTERN.fullmatch(value):
        raise ValueError(
            "an event type is 1 to 128 of a-z, 0-9, '.', '_', '-', starting with a letter or digit"
        )
    try:
        return EventType(value)
    except ValueError:
        return value


def _no_control(value: str) -> str:
    if _CONTROL.search(value):
        raise ValueError("must not contain control characters")
    return value


EventTypeName = Annotated[str, AfterValidator(known_type)]
"""A well-formed event type; one of ours becomes its `EventType` member."""

Identifier = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_no_control)]
"""1 to 255 characters without control characters."""

UtcDatetime = Annotated[datetime, AfterValidator(utc)]
"""A moment, kept in UTC; a naive one is taken as UTC."""


def new_event_id() -> UUID:
    """A time-ordered random id (UUIDv7): random ids make the unique index the bottleneck."""
    return uuid_utils.compat.uuid7()


def deterministic_event_id(started_at: datetime, *parts: str) -> UUID:
    """The same id for the same parts: a UUIDv8 of the run's start and a hash (RFC 9562, 5.8).

    Ids of one run lie together in an index, and a repeated run appends nothing twice.
    """
    return _hashed(int(utc(started_at).timestamp() * 1000) & (2**48 - 1), "\x1f".join(parts))


def derived_event_id(token: UUID, number: int) -> UUID:
    """The id of the event with this number among those of one token, whose time it takes over."""
    return _hashed(token.int >> 80, f"{token.int:x}\x1f{number}")


def named_token(*names: str) -> UUID:
    """The same token for the same names, for ever."""
    return _hashed(0, "\x1f".join(names))


def _hashed(milliseconds: int, text: str) -> UUID:
    """A UUIDv8 of a time and a hash (RFC 9562, 5.8)."""
    value = (milliseconds << 80) | int.from_bytes(hashlib.sha256(text.encode()).digest()[:10])
    return UUID(int=value & ~(0xF << 76 | 0x3 << 62) | (0x8 << 76 | 0x2 << 62))


class BaseEvent(BaseModel):
    """Something that happened, as its author states it: a draft until a store records it.

    `event_version` 0 lets the store assign the aggregate's next version; another number must be
    exactly the next one. `timestamp` is when it happened and may lie in the past.
    """

    model_config = ConfigDict(validate_assignment=True, extra="forbid", hide_input_in_errors=True)

    event_id: UUID = Field(default_factory=new_event_id)
    event_type: EventTypeName
    aggregate_id: Identifier
    aggregate_type: Identifier
    event_version: int = Field(default=0, ge=0, lt=2**31)
    timestamp: UtcDatetime = Field(default_factory=lambda: datetime.now(UTC))
    correlation_id: UUID | None = None
    causation_id: UUID | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    data: dict[str, Any] = Field(default_factory=dict)

    def follow(self, parent: BaseEvent) -> Self:
        """Take the parent's correlation (its event_id where it has none) and name it as the cause."""
        self.correlation_id = parent.correlation_id or parent.event_id
        self.causation_id = parent.event_id
        return self

    encoded_payload: ClassVar[bytes | None] = None
    """The payload as canonical JSON, where it is at hand (see kept_payload)."""

    @property
    def defaulted_payload(self) -> frozenset[str]:
        """Payload fields that the caller left to their default: they follow the timestamp."""
        return frozenset()


# Where pydantic keeps an instance's parts. One is made for every row read, and these ways cost least.
set_fields = vars(BaseModel)["__dict__"].__set__
set_names, set_extra, set_private = (
    vars(BaseModel)[f"__pydantic_{name}__"].__set__ for name in ("fields_set", "extra", "private")
)
