"""The AsyncAPI 3.0 document of the topics: what somebody needs who reads Kafka with no code of ours.

Derived from the registered events: a channel for each topic, and one for the dead letters of a consumer
group. Key, value and headers are the contract of the Kafka transport (contract, section 6).
https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

from eventsourcing.events import TypedEvent, registered_events
from eventsourcing.schemas import Schema, payload_schema

_BINDING = {"bindingVersion": "0.5.0"}
_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "string", "pattern": "^[0-9]+$"}
_MOMENT: Schema = {"type": "string", "format": "date-time"}
_ID: Schema = {"type": "string", "format": "uuid"}

_INTRODUCTION = """Every event of the store reaches the topic of its type at least once: \
a reader tells repetitions by `ce_id`. Within one topic the events of an aggregate come in the order of \
`es-version`. Across topics Kafka keeps no order; `es-prev` says which versions of the other types come \
before an event, so that a reader of several topics can wait for them. Headers are UTF-8 text. Unknown \
headers and payload fields may be added at any time; a payload that changes in another way gets a new \
`schema_version` in `es-metadata`, where absent means 1."""

_HEADERS: dict[str, tuple[Schema, str]] = {
    "content-type": ({"const": "application/json"}, "The value is the payload alone, as JSON."),
    "ce_specversion": ({"const": "1.0"}, "CloudEvents in binary mode."),
    "ce_id": (_ID, "The event_id: one event for ever, the same in every delivery of it."),
    "ce_type": (_TEXT, "The event type."),
    "ce_source": (_TEXT, "`/{prefix}/{aggregate_type}`, both percent-encoded."),
    "ce_subject": (_TEXT, "The aggregate_id."),
    "ce_time": (_MOMENT, "When it happened, in UTC."),
    "ce_partitionkey": (_TEXT, "The aggregate_id, which is the key too."),
    "ce_correlationid": (_ID, "The same in all events of one undertaking."),
    "ce_causationid": (_ID, "The event_id of the event that caused this one."),
    "es-position": (_NUMBER, "The place in the store: growing, with numbers left out."),
    "es-version": (_NUMBER, "The place in the aggregate's stream: from 1, without a gap over all types."),
    "es-recorded-at": (_MOMENT, "When the store took it, in UTC."),
    "es-metadata": (
        {"type": "string", "contentMediaType": "application/json"},
        "Facts about the event, a JSON object: its `schema_version`, and what the author added.",
    ),
    "es-prev": (
        {"type": "string", "contentMediaType": "application/json"},
        "A JSON object, type to version: the last version of each type before this event in its aggregate.",
    ),
    "traceparent": (_TEXT, "W3C trace context of whoever appended the event."),
}
"""Header -> its schema and its meaning."""

_SOMETIMES = {
    "ce_correlationid",
    "ce_causationid",
    "es-position",
    "es-version",
    "es-recorded-at",
    "es-prev",
    "traceparent",
}
"""Headers that an event without such a fact lacks; the `es-` ones only when it is in no store."""

_DEAD_LETTER_HEADERS: dict[str, tuple[Schema, str]] = {
    "dlq-original-topic": (_TEXT, "The topic that the event came from."),
    "dlq-original-partition": (_NUMBER, "Its partition there."),
    "dlq-original-offset": (_NUMBER, "Its offset there."),
    "dlq-original-timestamp": (_TEXT, "Its Kafka timestamp there."),
    "dlq-consumer-group": (_TEXT, "The group that gave the event up."),
    "dlq-handler": (_TEXT, "The handler that failed."),
    "dlq-reason": (
        {"enum": ["retries-exhausted", "deserialization", "parked-behind"]},
        "Why it is here: it failed, it cannot be read, or it waits behind one of these.",
    ),
    "dlq-exception-class": (_TEXT, "The class of the last error."),
    "dlq-exception-message": (_TEXT, "Its message, cut and without secrets."),
    "dlq-exception-stacktrace": (_TEXT, "Where it came from, cut and without secrets."),
    "dlq-attempts": (_NUMBER, "How often the handler was called."),
    "dlq-last-failure-time": (_MOMENT, "When the group gave it up."),
}

_ALWAYS_ON_DEAD_LETTERS = {"dlq-consumer-group", "dlq-reason", "dlq-last-failure-time"}
"""The others stand on what came from Kafka, or on what failed itself."""


def asyncapi_document(
    *,
    topic_prefix: str = "migration",
    brokers: Sequence[str] = (),
    partitions: int | None = None,
    events: Iterable[type[TypedEvent]] | None = None,
) -> dict[str, Any]:
    """The document of these classes, by default of every registered one.

    `brokers` are `host:port` each, and `partitions` what every topic has; neither stands in the document
    unless given.
    """
    classes = list(registered_events() if events is None else events)
    topic: dict[str, Any] = {} if partitions is None else {"partitions": partitions}
    schemas: dict[str, Schema] = {
        "headers": _headers(_HEADERS, set(_HEADERS) - _SOMETIMES),
        "dead-letter-headers": _headers(_DEAD_LETTER_HEADERS, _ALWAYS_ON_DEAD_LETTERS),
    }
    channels: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    for cls in classes:
        name = str(cls.declared_type)
        schemas |= _schemas(cls)
        messages[name] = _message(cls)
        channels[name] = _channel(f"{topic_prefix}.{name}", name, topic)
    messages["dead-letter"] = _dead_letter()
    channels["dead-letters"] = _dead_letters(topic_prefix)
    servers = {
        f"broker-{place}": {"host": host, "protocol": "kafka"} for place, host in enumerate(brokers, 1)
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": f"Events under {topic_prefix}",
            "version": version("event-sourced-migration"),
            "description": _INTRODUCTION,
        },
        "defaultContentType": "application/json",
        **({"servers": servers} if servers else {}),
        "channels": channels,
        "operations": {f"send.{name}": _operation(name, channel) for name, channel in channels.items()},
        "components": {"messages": messages, "schemas": schemas},
    }


def _headers(headers: dict[str, tuple[Schema, str]], required: set[str]) -> Schema:
    return {
        "type": "object",
        "required": [name for name in headers if name in required],
        "properties": {name: {**schema, "description": words} for name, (schema, words) in headers.items()},
    }


def _schemas(cls: type[TypedEvent]) -> dict[str, Schema]:
    """The payload's schema, and beside it the definitions that it refers to."""
    name = str(cls.declared_type)
    payload = payload_schema(cls, ref_template=f"#/components/schemas/{name}.{{model}}")
    del payload["$schema"]
    definitions = payload.pop("$defs", {})
    return {name: payload, **{f"{name}.{model}": schema for model, schema in definitions.items()}}


def _message(cls: type[TypedEvent]) -> dict[str, Any]:
    name = str(cls.declared_type)
    own = {"type": "object", "properties": {"ce_type": {"const": name}}}
    return {
        "name": name,
        "title": cls.__name__,
        "summary": " ".join((cls.__doc__ or "").split()),
        "contentType": "application/json",
        "headers": {"allOf": [{"$ref": "#/components/schemas/headers"}, own]},
        "payload": {"$ref": f"#/components/schemas/{name}"},
        "correlationId": {"location": "$message.header#/ce_correlationid"},
        "bindings": {"kafka": {"key": {**_TEXT, "description": "The aggregate_id."}, **_BINDING}},
    }


def _channel(address: str, name: str, topic: dict[str, Any]) -> dict[str, Any]:
    return {
        "address": address,
        "messages": {name: {"$ref": f"#/components/messages/{name}"}},
        "bindings": {"kafka": {"topic": address, **topic, **_BINDING}},
    }


def _dead_letter() -> dict[str, Any]:
    references = [{"$ref": f"#/components/schemas/{name}"} for name in ("headers", "dead-letter-headers")]
    return {
        "name": "dead-letter",
        "title": "Dead letter",
        "summary": "An event that a consumer group gave up, with key, value and headers as they were.",
        "headers": {"allOf": references},
        "payload": {"description": "The value as it was."},
        "bindings": {"kafka": {"key": {**_TEXT, "description": "The key as it was."}, **_BINDING}},
    }


def _dead_letters(topic_prefix: str) -> dict[str, Any]:
    return {
        "address": f"{topic_prefix}.dlq.{{group}}",
        "description": "One topic a consumer group. Later events of the same aggregate wait behind it.",
        "parameters": {"group": {"description": "The consumer group."}},
        "messages": {"dead-letter": {"$ref": "#/components/messages/dead-letter"}},
        "bindings": {"kafka": dict(_BINDING)},
    }


def _operation(channel: str, described: dict[str, Any]) -> dict[str, Any]:
    messages = [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in described["messages"]]
    return {"action": "send", "channel": {"$ref": f"#/channels/{channel}"}, "messages": messages}
