"""What operators send and get about dead letters and consumers."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StringConstraints, model_validator

from api.problems import invalid_field
from api.schemas import PageParams, examples
from eventsourcing.dead_letters import owner_of
from eventsourcing.events import EventTypeName, Identifier
from eventsourcing.redrive import ParkedSelection

LetterId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,2000}$")]
Reason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]


class DeadLetterFilters(PageParams):
    """Which dead letters: all conditions given must hold."""

    limit: Annotated[int, Field(ge=1, le=100)] = 100
    consumer_group: Identifier | None = None
    event_type: EventTypeName | None = None
    aggregate_id: Identifier | None = None


class _Selected(BaseModel):
    """Which parked aggregates of a group: those named, those that all filters fit, or all."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    consumer_group: Identifier
    ids: Annotated[list[LetterId], Field(min_length=1, max_length=1000)] | None = None
    """Of dead letters, as `GET /dead-letters` tells them."""
    aggregate_id: Identifier | None = None
    event_type: EventTypeName | None = None
    """That of the failed event in front."""
    fingerprint: Annotated[str, StringConstraints(min_length=1, max_length=100)] | None = None
    """The cause of the failure in front."""
    everything: StrictBool = False
    dry_run: StrictBool = False
    """Count what it would take, and do nothing."""

    @model_validator(mode="after")
    def _one_way(self) -> _Selected:
        filtered = any((self.aggregate_id, self.event_type, self.fingerprint))
        if (self.ids is not None) + filtered + self.everything != 1:
            raise ValueError("say which: ids, or filters, or everything")
        return self

    def keys(self) -> frozenset[str]:
        """The letters named by `ids`. Raises a 422 problem for an id of no letter of the group."""
        return frozenset(self._key(index, one) for index, one in enumerate(self.ids or ()))

    def selection(self) -> ParkedSelection:
        """The aggregates that are selected. Raises what `keys` raises."""
        named = {owner_of(key)[1] for key in self.keys()}
        return ParkedSelection(
            self.consumer_group,
            self.aggregate_id,
            self.event_type,
            self.fingerprint,
            aggregates=tuple(sorted(named)),
        )

    def _key(self, index: int, letter_id: str) -> str:
        try:
            key = base64.urlsafe_b64decode(letter_id + "=" * (-len(letter_id) % 4)).decode()
            if "\x00" not in key and owner_of(key)[0] == self.consumer_group:
                return key
        except ValueError:
            pass
        raise invalid_field(f"ids.{index}", "is not the id of a dead letter of this group")


class RedriveBody(_Selected):
    """Which parked aggregates to give to their handlers again: each with its whole queue, in order."""

    model_config = examples(
        {"consumer_group": "accounts", "everything": True, "reason": "names may be empty now"}
    )

    cap: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """At most so many events."""
    reason: Reason = "asked for over HTTP"


class DiscardBody(_Selected):
    """Which failed events to give up: those in front of parked aggregates, or with all that waits behind."""

    model_config = examples(
        {"consumer_group": "accounts", "aggregate_id": "user-18", "reason": "a test account"}
    )

    whole_queue: StrictBool = False
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    """At most so many aggregates."""
    reason: Reason


class DeadLetterOut(BaseModel):
    """An event that a group gave up (`failed`), or that waits behind one (`waiting`)."""

    id: str
    consumer_group: str
    status: Literal["failed", "waiting"]
    event: dict[str, Any]
    error: str | None
    error_class: str | None
    stack: str | None
    fingerprint: str | None
    handler: str | None
    attempts: int
    redrives: int
    parked_at: datetime
    first_failed_at: datetime | None
    last_failed_at: datetime | None


class DeadLettersOut(BaseModel):
    """A page of dead letters, by group, aggregate and place in the queue."""

    model_config = examples(
        {
            "dead_letters": [
                {
                    "id": "YWNjb3VudHMfdXNlci0xNx8wMDAwMDAwMDAwMDAwMDAwMDAwNw",
                    "consumer_group": "accounts",
                    "status": "failed",
                    "event": {"event_type": "user.migrated", "aggregate_id": "user-17"},
                    "error": "PermanentError: an account needs a name",
                    "error_class": "PermanentError",
                    "stack": "Traceback (most recent call last): …",
                    "fingerprint": "9f3c51d0a2b4",
                    "handler": "Accounts",
                    "attempts": 4,
                    "redrives": 0,
                    "parked_at": "2026-11-24T08:00:00Z",
                    "first_failed_at": "2026-11-24T08:00:00Z",
                    "last_failed_at": "2026-11-24T08:00:00Z",
                }
            ]
        }
    )

    dead_letters: list[DeadLetterOut]


class RedriveOut(BaseModel):
    """What a re-drive takes; it runs as a job unless it was only counted, or there is nothing to do."""

    model_config = examples(
        {
            "consumer_group": "accounts",
            "status": "started",
            "aggregates": 3,
            "letters": 7,
            "message": "Re-drive of 3 aggregates started",
            "dagster_run_id": "8c3f6f0e-4c55-4b0e-9d7e-0a5a6f0d7a11",
        }
    )

    consumer_group: str
    status: Literal["started", "counted", "nothing to do"]
    aggregates: int
    letters: int
    message: str
    dagster_run_id: str | None


class DiscardOut(BaseModel):
    """What a discard came to, or would come to; what stands behind the discarded is re-driven as a job."""

    model_config = examples(
        {
            "consumer_group": "accounts",
            "status": "discarded",
            "letters": 1,
            "released": 0,
            "behind": 1,
            "message": "1 dead letter discarded",
            "dagster_run_id": "8c3f6f0e-4c55-4b0e-9d7e-0a5a6f0d7a11",
        }
    )

    consumer_group: str
    status: Literal["discarded", "counted"]
    letters: int
    released: int
    behind: int
    message: str
    dagster_run_id: str | None


def letter_id(key: str) -> str:
    """A letter's key as callers know it."""
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")
