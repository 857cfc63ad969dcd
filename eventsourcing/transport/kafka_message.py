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
from typing import Any
from urllib.parse import quote, unquote
from uuid import UUID

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
    source = f"/{quote(prefix, safe='')}/{quote(event.aggregate_type, safe='')}"
    headers: Headers = [
        ("content-type", "application/json"),
        ("ce_specversion", "1.0"),
        ("ce_id", str(event.event_id)),
        ("ce_type", str(event.event_type)),
        ("ce_source", source),
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
    headers.append(("es-metadata", encode(event.metadata, field="metadata")))
    if predecessors is not None:
        headers.append(("es-prev", encode(predecessors)))
    traceparent = event.metadata.get("traceparent")
    if isinstance(traceparent, str) and _TRACEPARENT.fullmatch(traceparent):
        headers.append(("traceparent", traceparent))
    return OutgoingMessage(
        topic_of(prefix, str(event.event_type)), event.aggregate_id.encode(), encode(event.data), headers
    )


def headers_of(message: Message) -> Headers:
    """The headers of a message that arrived, in their order."""
    headers = message.headers() or []
    return list(headers.items()) if isinstance(headers, dict) else list(headers)


def decode_event(value: bytes | None, headers: Headers) -> tuple[BaseEvent, dict[str, int]]:
    """The event of a message exactly as it was published, and its predecessors.

    A message without a position is a draft's. Raises InvalidEventError for what is no event of ours.
    """
    texts = dict(headers)
    try:
        fields: dict[str, Any] = {
            "event_id": UUID(_text(texts, "ce_id")),
            "event_type": _TYPES.get(kind := _text(texts, "ce_type"), kind),
            "aggregate_id": _text(texts, "ce_subject"),
            "aggregate_type": unquote(_text(texts, "ce_source").rpartition("/")[2]),
            "event_version": int(_text(texts, "es-version", "0")),
            "timestamp": utc(datetime.fromisoformat(_text(texts, "ce_time"))),
            "correlation_id": _uuid(texts, "ce_correlationid"),
            "causation_id": _uuid(texts, "ce_causationid"),
            "metadata": decode(_text(texts, "es-metadata", "{}")),
            "data": decode(value or b""),
        }
        if "es-position" not in texts:
            return BaseEvent(**fields), {}
        fields["position"] = int(_text(texts, "es-position"))
        fields["recorded_at"] = utc(datetime.fromisoformat(_text(texts, "es-recorded-at")))
        return RecordedEvent.from_store(fields), decode(_text(texts, "es-prev", "{}"))
    except (ValueError, KeyError) as error:
        raise InvalidEventError(f"not an event of this system: {error}") from error


def _text(texts: Mapping[str, str | bytes | None], name: str, default: str | None = None) -> str:
    content = texts.get(name, default)
    if content is None:
        raise KeyError(f"header {name} is missing")
    return content.decode() if isinstance(content, bytes) else content


def _uuid(texts: Mapping[str, str | bytes | None], name: str) -> UUID | None:
    return UUID(_text(texts, name)) if name in texts else None


def _moment(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
