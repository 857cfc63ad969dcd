"""The schemas in docs/schemas are those of the code, and what is stored fits them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from eventsourcing import EventStore, EventType, TypedEvent
from eventsourcing.canonical import decode, encode
from eventsourcing.events import registered_events
from eventsourcing.schema_changes import changes
from eventsourcing.schemas import (
    ENVELOPE,
    as_text,
    envelope_schema,
    event_schemas,
    file_of,
    payload_schema,
    read_schemas,
    write_schemas,
)
from eventsourcing.testing import a_migration
from tests.seats import own_registry, release

GOLDEN = Path(__file__).parents[2] / "docs" / "schemas"

__all__ = ["own_registry"]


def ours() -> list[type[TypedEvent]]:
    return [cls for cls in registered_events() if cls.__module__.startswith("eventsourcing.")]


def test_the_published_schemas_are_those_of_the_code() -> None:
    found = changes(read_schemas(GOLDEN), event_schemas(ours()))
    assert [str(change) for change in found] == [], f"`esm events schemas accept {GOLDEN}`, if compatible"
    assert {cls.declared_type for cls in ours()} == set(EventType)


def test_the_published_files_are_written_as_the_command_writes_them() -> None:
    for name, schema in event_schemas(ours()).items():
        assert (GOLDEN / name).read_text("utf-8") == as_text(schema), name


def removed(schema: dict[str, Any], name: str) -> None:
    del schema["properties"][name]


def retyped(schema: dict[str, Any], name: str) -> None:
    schema["properties"][name] = {"type": "array"}


def turned(schema: dict[str, Any], name: str) -> None:
    """Required where it was optional, and the other way round."""
    required = set(schema["required"]) ^ {name}
    schema["required"] = sorted(required)


@pytest.mark.parametrize("change", [removed, retyped, turned])
def test_planted_in_every_field_of_every_published_schema_a_breaking_change_is_caught(
    change: Callable[[dict[str, Any], str], None],
) -> None:
    accepted = read_schemas(GOLDEN)
    for file, schema in accepted.items():
        for name in schema["properties"]:
            broken = deepcopy(accepted)
            change(broken[file], name)
            found = [one for one in changes(accepted, broken) if one.breaking]
            assert [one.field.rpartition(".")[2] for one in found] == [name], (file, name)
            assert all(one.cure for one in found)


@pytest.mark.parametrize("schema", [*event_schemas(ours()).values()], ids=lambda schema: schema["title"])
def test_each_is_a_schema(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["description"].endswith(".")


async def test_what_is_stored_fits_the_schemas(store: EventStore) -> None:
    stored = await store.append_events(a_migration())
    schemas = event_schemas(ours())
    payloads = {schema.get("x-event-type"): schema for schema in schemas.values()}
    for event in stored:
        whole = decode(encode(event.model_dump()))
        jsonschema.validate(whole, schemas[ENVELOPE], jsonschema.Draft202012Validator)
        jsonschema.validate(event.data, payloads[event.event_type], jsonschema.Draft202012Validator)
        broken = {name: value for name, value in event.data.items() if name.endswith("_at")}
        with pytest.raises(jsonschema.ValidationError, match="required"):
            jsonschema.validate(broken, payloads[event.event_type], jsonschema.Draft202012Validator)


def test_the_envelope_names_every_field_and_may_gain_more() -> None:
    schema = envelope_schema()
    assert schema["required"] == list(schema["properties"])
    assert schema["additionalProperties"] is True


def test_a_file_is_named_after_type_and_version(own_registry: None) -> None:
    assert [file_of(payload_schema(release(number))) for number in (1, 3)] == [
        "test.seat.reserved.v1.json",
        "test.seat.reserved.v3.json",
    ]


def test_schemas_are_read_as_they_were_written_and_strangers_are_named(tmp_path: Path) -> None:
    schemas = event_schemas(ours())
    assert read_schemas(tmp_path / "nothing") == {}
    write_schemas(tmp_path / "made", schemas)
    assert read_schemas(tmp_path / "made") == schemas
    for content in ("{", "[]", "{}"):
        (tmp_path / "made" / "odd.json").write_text(content)
        with pytest.raises(ValueError, match=r"odd\.json"):
            read_schemas(tmp_path / "made")
