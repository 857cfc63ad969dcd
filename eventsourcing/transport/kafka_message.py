"""How an event looks on Kafka: CloudEvents in binary mode, and what else rebuilds the stored event.

Topic `{prefix}.{event_type}`, key the aggregate_id, value the payload as JSON. These forms are a contract
with people who use no code of ours (docs/guides/consume-from-kafka.md): they are extended, never changed.
https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote
from uuid import UUID

import orjson
from confluent_kafka import Message

from eventsourcing.canonical import decode, encode, utc
from eventsourcing.errors import InvalidEventError
from eventsourcing.events import BaseEvent, EventType, RecordedEvent

DEAD_LETTER_INFIX = "dlq."
"""`{prefix}.dlq.{group}` are the topics of dead letters, so no event type may begin like this."""

Headers = list[tuple[str, str | bytes | None]]

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_TYPES: dict[str, str] = {member.value: member for member in EventType}


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """What is produced for one event."""

    topic: str
    key: bytes
    value: bytes
    headers: Headers


@lru_cache(1024)
def topic_of(prefix: str, event_type: str) -> str:
    """The topic of an event type. Raises InvalidEventError for a type that would mix with dead letters."""
    if event_type.startswith(DEAD_LETTER_INFIX):
        raise InvalidEventError(
            f"types that begin with {DEAD_LETTER_INFIX!r} are the topics of dead letters", field="event_type"
        )
    return f"{prefix}.{event_type}"


def encode_message(
    prefix: str, event: BaseEvent, predecessors: Mapping[str, int] | None = None
) -> OutgoingMessage:
    """The message of an event. `predecessors`: the last version of each type before it in its aggregate."""
    kind = event.event_type
    content_type, version, ce_type, source = _headers_of_kind(prefix, kind, event.aggregate_type)
    headers: Headers = [
        content_type,
        version,
        ("ce_id", str(event.event_id)),
        ce_type,
        source,
        ("ce_subject", event.aggregate_id),
        ("ce_time", _moment(event.timestamp)),
        ("ce_partitionkey", event.aggregate_id),
    ]
    if event.correlation_id is not None:
        headers.append(("ce_correlationid", str(event.correlation_id)))
    if event.causation_id is not None:
        headers.append(("ce_causationid", str(event.causation_id)))
    if event.event_version:
        headers.append(("es-version", str(event.event_version)))
    if isinstance(event, RecordedEvent):
        headers += [
            ("es-position", str(event.position)),
            ("es-recorded-at", _moment(event.recorded_at)),
        ]
    headers.append(("es-metadata", encode(event.metadata, field="metadata") if event.metadata else b"{}"))
    if predecessors is not None:
        headers.append(("es-prev", encode(predecessors) if predecessors else b"{}"))
    traceparent = event.metadata.get("traceparent")
    if isinstance(traceparent, str) and _TRACEPARENT.fullmatch(traceparent):
        headers.append(("traceparent", traceparent))
    return OutgoingMessage(topic_of(prefix, kind), event.aggregate_id.encode(), encode(event.data), headers)


def headers_of(message: Message) -> Headers:
    """The headers of a message that arrived, in their order."""
    headers = message.headers() or []
    return list(headers.items()) if isinstance(headers, dict) else list(headers)


def decode_event(value: bytes | None, headers: Headers) -> tuple[BaseEvent, dict[str, int]]:
    """The event of a message exactly as it was published, and its predecessors.

    A message without a position is a draft's. Raises InvalidEventError for what is no event of ours,
    UpcastError for a payload that cannot be brought to this code's version.
    """
    try:
        texts = {
            name: content.decode() if isinstance(content, bytes) else content
            for name, content in headers
            if content is not None and name.startswith(("ce_", "es-"))
        }
        kind = texts["ce_type"]
        correlation, causation = texts.get("ce_correlationid"), texts.get("ce_causationid")
        fields: dict[str, Any] = {
            "event_id": UUID(texts["ce_id"]),
            "event_type": _TYPES.get(kind, kind),
            "aggregate_id": texts["ce_subject"],
            "aggregate_type": _aggregate_type(texts["ce_source"]),
            "event_version": int(texts.get("es-version", "0")),
            "timestamp": _parsed(texts["ce_time"]),
            "correlation_id": UUID(correlation) if correlation else None,
            "causation_id": UUID(causation) if causation else None,
            "metadata": decode(texts.get("es-metadata", "{}")),
            "data": decode(value or b""),
        }
        if "es-position" not in texts:
            return BaseEvent(**fields), {}
        fields["position"] = int(texts["es-position"])
        fields["recorded_at"] = _parsed(texts["es-recorded-at"])
        return RecordedEvent.from_store(fields), predecessors_of(headers)
    except KeyError as error:
        raise InvalidEventError(f"not an event of this system: header {error} is missing") from error
    except ValueError as error:
        raise InvalidEventError(f"not an event of this system: {error}") from error


def predecessors_of(headers: Headers) -> dict[str, int]:
    """The last version of each type before the event of a message in its aggregate."""
    found: dict[str, int] = decode(dict(headers).get("es-prev") or b"{}")
    return found


@lru_cache(1024)
def _headers_of_kind(prefix: str, event_type: str, aggregate_type: str) -> Headers:
    """What the messages of a kind of event have in common."""
    return [
        ("content-type", "application/json"),
        ("ce_specversion", "1.0"),
        ("ce_type", str(event_type)),
        ("ce_source", _source(prefix, aggregate_type)),
    ]


def _source(prefix: str, aggregate_type: str) -> str:
    return f"/{quote(prefix, safe='')}/{quote(aggregate_type, safe='')}"


@lru_cache(1024)
def _aggregate_type(source: str) -> str:
    return unquote(source.rpartition("/")[2])


def _moment(moment: datetime) -> str:
    """RFC 3339 in UTC, as `canonical.encode` writes it."""
    return orjson.dumps(moment, option=orjson.OPT_UTC_Z)[1:-1].decode()


def _parsed(moment: str) -> datetime:
    return utc(datetime.fromisoformat(moment))
