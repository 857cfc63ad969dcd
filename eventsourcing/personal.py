"""Personal data in what people read: masked for those who may not see it.

An event class says which fields of its payload are personal. Whatever nobody has declared, a field of a
payload beyond its declaration, a payload of a type that is not registered, an entry of the metadata that
is not the system's, counts as personal: what is forgotten is hidden, not shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eventsourcing.events import RESERVED_METADATA, RecordedEvent, event_class

MASK = "***"
"""What stands in the place of personal data."""

_REFERENCES = frozenset({"migration_id", "attempt"})
"""What our own events carry beyond their declared payload: it leads to other events, not to a person."""

STATISTICS = frozenset({"error_message", "error_details"})
"""The personal fields of a migration's statistics: a database's error can quote a row."""

QUARANTINE = frozenset({"source_key", "message", "also"})
"""The personal fields of a quarantined row: a rule's message can quote a value."""

MIGRATION = frozenset({"failure", "samples", "message", "conflicting"})
"""The personal fields of what is told of a migration: errors, and records named as examples."""

DEAD_LETTER = frozenset({"error", "stack"})
"""The personal fields of a dead letter beside its event: what a handler said can quote a value."""

REPLAY = frozenset({"error", "failure", "difference"})
"""The personal fields of a replay: what handlers said, and the states that differ."""

RECORD_VIEW = frozenset({"username", "source_data", "target_data"})
"""The personal fields of a user's or an admin's view."""


def masked_fields(event: RecordedEvent) -> dict[str, Any]:
    """The fields of a stored event with its personal data masked; the event stays as it is."""
    return masked_event(vars(event))


def masked_event(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an event, as they lie in a dead letter, with its personal data masked."""
    cls = event_class(fields["event_type"])
    if cls is None or cls.personal is None:
        clear: frozenset[str] = _REFERENCES
    else:
        clear = (frozenset(cls.payload_model.model_fields) - cls.personal) | _REFERENCES
    masked = {"data": _only(fields["data"], clear), "metadata": _only(fields["metadata"], RESERVED_METADATA)}
    return {**fields, **masked}


def without(view: Mapping[str, Any], personal: frozenset[str]) -> dict[str, Any]:
    """A view with these fields masked, however deep they lie."""
    return {name: MASK if name in personal else _deeper(value, personal) for name, value in view.items()}


def masked_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a snapshot: statistics and views without what is personal, any other fold's masked."""
    if "status" in state and "user_count" in state:
        return without(state, STATISTICS)
    if state.keys() >= RECORD_VIEW:
        return without(state, RECORD_VIEW)
    return dict.fromkeys(state, MASK)


def _only(values: Mapping[str, Any], clear: frozenset[str]) -> dict[str, Any]:
    return {name: value if name in clear else MASK for name, value in values.items()}


def _deeper(value: Any, personal: frozenset[str]) -> Any:
    if isinstance(value, Mapping):
        return without(value, personal)
    return [_deeper(inner, personal) for inner in value] if isinstance(value, list) else value
