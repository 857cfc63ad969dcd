"""Make drafts ready to append: encoded, measured, and with the version each must have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from eventsourcing.canonical import decode, encode
from eventsourcing.errors import InvalidEventError
from eventsourcing.events import MAX_EVENT_BYTES, BaseEvent, RecordedEvent
from eventsourcing.storage.base import NewEvent, settle_duplicate
from eventsourcing.upcasting import SCHEMA_VERSION, VERSIONED, write_newest

ANY: Final = -1
"""`expected_version`: append at whatever version the aggregate is."""

NO_STREAM: Final = 0
"""`expected_version`: the aggregate must have no events yet."""

ExpectedVersion = int | Mapping[str, int]
"""The version an aggregate must be at: for the one aggregate of the call, or by aggregate_id."""


def prepare(events: Sequence[BaseEvent], expected_version: ExpectedVersion = ANY) -> list[NewEvent]:
    """The drafts of one call, in its order, without repetitions of the same event.

    Raises InvalidEventError naming the index and the field, DuplicateEventError when two events of
    the call share an id and differ.
    """
    following = {} if expected_version == ANY else _first_versions(events, expected_version)
    ready: dict[int, NewEvent] = {}
    for index, event in enumerate(events):
        number = event.event_id.int  # a UUID's own hash is a call
        twin = ready.get(number)
        try:
            new = _prepared(event, {} if twin else following)
        except InvalidEventError as error:
            raise InvalidEventError(error.reason, field=error.field, index=index) from None
        if twin:
            settle_duplicate(new, _as_stored(twin))
        else:
            ready[number] = new
    return list(ready.values())


def _first_versions(events: Sequence[BaseEvent], expected: ExpectedVersion) -> dict[str, int]:
    """The version that the next event of an aggregate must have, for aggregates that the caller named."""
    aggregates = {event.aggregate_id for event in events}
    if isinstance(expected, Mapping):
        named = dict(expected)
        if strangers := set(named) - aggregates:
            raise InvalidEventError(
                f"no event of the call is of {min(strangers)!r}", field="expected_version"
            )
    else:
        if expected != ANY and len(aggregates) > 1:
            raise InvalidEventError(
                "one number names one aggregate; give {aggregate_id: version}", field="expected_version"
            )
        named = dict.fromkeys(aggregates, expected)
    for aggregate_id, version in named.items():
        if version < ANY:
            raise InvalidEventError(f"{version} for {aggregate_id!r} is no version", field="expected_version")
    return {aggregate_id: version + 1 for aggregate_id, version in named.items() if version != ANY}


def _prepared(event: BaseEvent, following: dict[str, int]) -> NewEvent:
    about: Mapping[str, Any] = event.metadata
    if event.event_type in VERSIONED or SCHEMA_VERSION in about:
        payload, about = write_newest(event.event_type, event.data, about)
        data = encode(payload)
    else:
        data = event.encoded_payload or encode(event.data)
    metadata = encode(about, field="metadata") if about else b"{}"
    if len(data) + len(metadata) > MAX_EVENT_BYTES:
        raise InvalidEventError(f"more than {MAX_EVENT_BYTES} bytes encoded", field="data")
    version = event.event_version
    if event.aggregate_id in following:
        version = following[event.aggregate_id]
        if event.event_version not in (0, version):
            raise InvalidEventError(
                f"{event.event_version} contradicts the expected version {version - 1}", field="event_version"
            )
        following[event.aggregate_id] = version + 1
    return NewEvent(event, version, data, metadata)


def _as_stored(new: NewEvent) -> RecordedEvent:
    """The first of two drafts with one id, as the second will find it."""
    fields = {name: getattr(new.event, name) for name in BaseEvent.model_fields}
    stored = {"event_version": new.version, "data": decode(new.data), "metadata": decode(new.metadata)}
    return RecordedEvent.from_store({**fields, **stored, "position": 0, "recorded_at": new.event.timestamp})
