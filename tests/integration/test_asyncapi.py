"""The AsyncAPI document holds to AsyncAPI's own schema, and says what the contract says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from copy import deepcopy
from enum import StrEnum
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from eventsourcing import EventPayload, TypedEvent
from eventsourcing.asyncapi import asyncapi_document
from eventsourcing.events import registered_events
from eventsourcing.schemas import as_text
from eventsourcing.testing import a_migration
from eventsourcing.transport import kafka_dead_letters
from eventsourcing.transport.kafka_message import encode_message, topic_of
from tests.factories import recorded, unused_id
from tests.servers import unavailable

SPECIFICATION = "@asyncapi/specs@6.11.1"
"""The npm package in which AsyncAPI publishes its schemas."""

GOLDEN = Path(__file__).parents[2] / "docs" / "asyncapi.json"

Document = dict[str, Any]


@pytest.fixture(scope="session")
def specification(pytestconfig: pytest.Config) -> Document:
    """AsyncAPI's JSON Schema of a 3.0 document, fetched once and kept in pytest's cache."""
    assert pytestconfig.cache is not None
    directory = pytestconfig.cache.mkdir("asyncapi")
    packed = directory / "asyncapi-specs-6.11.1.tgz"
    if not packed.exists():
        npm = shutil.which("npm")
        if npm is None:
            unavailable("AsyncAPI's schema", "npm is not installed")
        command = [str(npm), "pack", "--silent", "--pack-destination", str(directory), SPECIFICATION]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        if done.returncode:
            unavailable("AsyncAPI's schema", f"npm cannot fetch {SPECIFICATION}")
    with tarfile.open(packed) as archive:
        member = archive.extractfile("package/schemas/3.0.0.json")
        assert member is not None
        schema: Document = json.load(member)
    return schema


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class ThingPainted(TypedEvent, event_type="test.thing.painted", aggregate_type="thing"):
    """A thing got a colour; its payload refers to a definition."""

    class Payload(EventPayload):
        colour: Colour


def ours() -> list[type[TypedEvent]]:
    return [cls for cls in registered_events() if cls.__module__.startswith("eventsourcing.")]


def documents() -> list[Document]:
    return [
        asyncapi_document(events=ours()),
        asyncapi_document(events=[]),
        asyncapi_document(events=[ThingPainted], topic_prefix="team.a", brokers=["a:9092"], partitions=6),
    ]


@pytest.mark.parametrize("document", documents(), ids=["ours", "no events", "a team's"])
def test_it_is_an_asyncapi_document(specification: Document, document: Document) -> None:
    jsonschema.validate(document, specification, jsonschema.Draft7Validator)


@pytest.mark.parametrize(
    "path",
    [
        ("info", "title"),
        ("channels", "user.migrated", "bindings", "kafka", "bindingVersion"),
        ("operations", "send.user.migrated", "action"),
        ("components", "messages", "user.migrated", "correlationId", "location"),
    ],
)
def test_planted_a_wrong_document_is_found(specification: Document, path: tuple[str, ...]) -> None:
    document = deepcopy(documents()[0])
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, specification, jsonschema.Draft7Validator)


@pytest.mark.parametrize("document", documents(), ids=["ours", "no events", "a team's"])
def test_every_reference_leads_somewhere_and_every_payload_is_a_schema(document: Document) -> None:
    for reference in references(document):
        place: Any = document
        for key in reference.removeprefix("#/").split("/"):
            place = place[key]
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft7Validator.check_schema(schema)


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "$ref":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_a_channel_is_the_topic_of_a_type_and_dead_letters_have_one_a_group() -> None:
    document = documents()[0]
    addresses = {channel["address"] for channel in document["channels"].values()}
    assert addresses == {f"migration.{cls.declared_type}" for cls in ours()} | {"migration.dlq.{group}"}
    assert all(operation["action"] == "send" for operation in document["operations"].values())
    assert len(document["operations"]) == len(document["channels"])


def test_the_headers_are_those_of_the_contract() -> None:
    schemas = documents()[0]["components"]["schemas"]
    cloud_events = "id type source subject time partitionkey correlationid causationid specversion"
    assert set(schemas["headers"]["properties"]) == {
        "content-type",
        *(f"ce_{name}" for name in cloud_events.split()),
        *("es-position", "es-version", "es-recorded-at", "es-metadata", "es-prev", "traceparent"),
    }
    sent = re.findall(r'"(dlq-[a-z-]+)"', Path(kafka_dead_letters.__file__).read_text("utf-8"))
    assert set(schemas["dead-letter-headers"]["properties"]) == set(sent)


@pytest.mark.parametrize("linked", [True, False])
def test_what_the_transport_sends_fits_the_document(linked: bool) -> None:
    document = documents()[0]
    about: dict[str, Any] = {"correlation_id": unused_id(), "causation_id": unused_id()} if linked else {}
    started = a_migration()[0].model_copy(update=about)
    started.metadata["traceparent"] = f"00-{'a' * 32}-{'b' * 16}-01"
    message = encode_message("migration", recorded(started, position=7), {"data.extracted": 1})
    headers = {name: value.decode() if isinstance(value, bytes) else value for name, value in message.headers}
    described = document["components"]["schemas"]["headers"]
    jsonschema.validate(headers, described, jsonschema.Draft7Validator)
    sometimes = set() if linked else {"ce_correlationid", "ce_causationid"}
    assert set(headers) == set(described["properties"]) - sometimes
    channel = document["channels"]["migration.started"]
    assert message.topic == channel["address"] == topic_of("migration", "migration.started")
    payload = document["components"]["schemas"]["migration.started"]
    jsonschema.validate(json.loads(message.value), payload, jsonschema.Draft7Validator)


def test_brokers_and_partitions_stand_in_it_only_when_given() -> None:
    plain, _, team = documents()
    assert "servers" not in plain
    assert team["servers"] == {"broker-1": {"host": "a:9092", "protocol": "kafka"}}
    assert team["channels"]["test.thing.painted"]["bindings"]["kafka"] == {
        "topic": "team.a.test.thing.painted",
        "partitions": 6,
        "bindingVersion": "0.5.0",
    }


def test_the_published_document_is_that_of_the_code() -> None:
    published = GOLDEN.read_text("utf-8")
    assert published == as_text(documents()[0]), f"`esm events asyncapi --out {GOLDEN}` writes it"
