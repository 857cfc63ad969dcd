"""JSON Schemas of what is stored: one document a version of a type's payload, and one of the envelope.

They are derived from the event classes and kept as files, which is what others build against. A file
is named after its type and version and never changes its meaning: see `schema_changes`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from eventsourcing.events import RecordedEvent, TypedEvent, registered_events

Schema = dict[str, Any]

DIALECT = GenerateJsonSchema.schema_dialect
ENVELOPE = "event.json"
"""The file of the envelope: the fields that every event has, its payload left open."""

TYPE, VERSION, AGGREGATE_TYPE = "x-event-type", "x-schema-version", "x-aggregate-type"

_FIELDS = {
    "event_id": "One event for ever; tells repeated deliveries apart.",
    "event_type": "Which schema describes `data`, together with `metadata.schema_version`.",
    "aggregate_id": "Whose event it is; the events of one aggregate are a stream.",
    "aggregate_type": "What kind of thing the aggregate is.",
    "event_version": "The place in the stream, from 1 without a gap.",
    "timestamp": "When it happened, as its author says; in UTC.",
    "correlation_id": "What belongs together: the same in all events of one undertaking.",
    "causation_id": "The event_id of the event that caused this one.",
    "metadata": "Facts about the event. `traceparent`, `dagster_run_id`, `backfilled`, `schema_version` "
    "(absent: 1) and `region` are the system's; everything else is the author's.",
    "data": "The payload.",
    "position": "The place in the store, growing; numbers may be left out.",
    "recorded_at": "When the store took it; in UTC.",
}
"""What the fields of the envelope mean to a reader."""


class _WithoutTitles(GenerateJsonSchema):
    """A field is called by its name; a title made from the name says nothing more."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - the signature is given
        return False


def payload_schema(cls: type[TypedEvent], *, ref_template: str = "#/$defs/{model}") -> Schema:
    """The schema of a type's newest payload, as it is stored and as it travels.

    `ref_template` says where a reader finds the definitions that stand under `$defs`.
    """
    payload = cls.payload_model.model_json_schema(
        mode="serialization", schema_generator=_WithoutTitles, ref_template=ref_template
    )
    for name, field in payload.get("properties", {}).items():
        if name.endswith("_at") and field.get("default", ...) is None and "anyOf" not in field:
            del field["default"]  # it follows the event's timestamp; null is never stored
    head = {
        "$schema": DIALECT,
        "title": cls.__name__,
        "description": " ".join((cls.__doc__ or "").split()),
        TYPE: str(cls.declared_type),
        VERSION: cls.lineage.newest,
        AGGREGATE_TYPE: cls.declared_aggregate,
    }
    return head | {keyword: value for keyword, value in payload.items() if keyword not in head}


def envelope_schema() -> Schema:
    """The schema of a stored event as every reader gets it."""
    schema = RecordedEvent.model_json_schema(mode="serialization", schema_generator=_WithoutTitles)
    for name, field in schema["properties"].items():
        field.pop("default", None)
        field["description"] = _FIELDS[name]
    return {
        "$schema": DIALECT,
        "title": "Event",
        "description": "A stored event. Its payload is described by the schema of its type.",
        "type": "object",
        "required": list(schema["properties"]),
        "additionalProperties": True,  # later releases may add fields
        "properties": schema["properties"],
    }


def event_schemas(events: Iterable[type[TypedEvent]] | None = None) -> dict[str, Schema]:
    """The documents of these classes, by default of every registered one, by the names of their files."""
    schemas = map(payload_schema, registered_events() if events is None else events)
    return {ENVELOPE: envelope_schema(), **{file_of(schema): schema for schema in schemas}}


def file_of(schema: Schema) -> str:
    """The name of a payload schema's file: type and version."""
    return f"{schema[TYPE]}.v{schema[VERSION]}.json"


def write_schemas(directory: Path, schemas: Mapping[str, Schema]) -> None:
    """Write documents into a directory, made if it is not there; other files in it stay."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, schema in schemas.items():
        (directory / name).write_text(as_text(schema), "utf-8")


def read_schemas(directory: Path) -> dict[str, Schema]:
    """The documents of a directory by file name; empty when it is not there.

    Raises ValueError naming the file that is no JSON object.
    """
    found: dict[str, Schema] = {}
    for path in sorted(directory.glob("*.json")):
        try:
            schema = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if not isinstance(schema, dict) or (path.name != ENVELOPE and not {TYPE, VERSION} <= schema.keys()):
            raise ValueError(f"{path} is no schema of an event")
        found[path.name] = schema
    return found


def as_text(document: Mapping[str, Any]) -> str:
    """A document as it stands in a file."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
