"""How events look on Kafka: what a consumer rebuilds is what was stored, and strangers' messages are told."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventsourcing import EventType, InvalidEventError, UpcastError
from eventsourcing.events import BaseEvent, RecordedEvent, new_event_id
from eventsourcing.transport.kafka_message import decode_event, encode_message, topic_of
from tests.factories import NOON, draft
from tests.seats import TYPE, own_registry, release

__all__ = ["own_registry"]

text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)
moment = st.datetimes(timezones=st.just(UTC))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=10,
)
objects = st.dictionaries(text, values, max_size=4)


@st.composite
def recorded_events(pick: st.DrawFn) -> RecordedEvent:
    fields: dict[str, Any] = {
        "event_id": pick(st.uuids()),
        "event_type": pick(
            st.sampled_from(list(EventType)) | st.from_regex(r"[a-z0-9][a-z0-9._-]{0,30}", fullmatch=True)
        ),
        "aggregate_id": pick(text),
        "aggregate_type": pick(text),
        "event_version": pick(st.integers(1, 2**31 - 1)),
        "timestamp": pick(moment),
        "correlation_id": pick(st.none() | st.uuids()),
        "causation_id": pick(st.none() | st.uuids()),
        "metadata": pick(objects),
        "data": pick(objects),
        "position": pick(st.integers(1, 2**63 - 1)),
        "recorded_at": pick(moment),
    }
    return RecordedEvent.from_store(fields)


@given(
    recorded_events(), st.dictionaries(st.sampled_from([kind.value for kind in EventType]), st.integers(1, 9))
)
def test_a_consumer_rebuilds_the_stored_event_exactly(event: RecordedEvent, before: dict[str, int]) -> None:
    if event.event_type.startswith("dlq."):
        return
    message = encode_message("migration", event, before)

    rebuilt, predecessors = decode_event(message.value, as_received(message.headers))

    assert type(rebuilt) is RecordedEvent
    assert rebuilt == event
    assert rebuilt.model_dump_json() == event.model_dump_json()
    assert predecessors == before
    assert message.key == event.aggregate_id.encode()
    assert message.topic == f"migration.{event.event_type}"


def as_received(headers: list[tuple[str, str | bytes | None]]) -> list[tuple[str, str | bytes | None]]:
    """Every value is bytes on arrival."""
    return [(name, value.encode() if isinstance(value, str) else value) for name, value in headers]


def test_the_headers_are_those_of_the_contract() -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    event = recorded(correlation_id=new_event_id(), metadata={"traceparent": traceparent, "by": "ann"})

    headers = dict(encode_message("moving", event, {"order.placed": 1}).headers)

    assert headers == {
        "content-type": "application/json",
        "ce_specversion": "1.0",
        "ce_id": str(event.event_id),
        "ce_type": "order.paid",
        "ce_source": "/moving/order",
        "ce_subject": "order-1",
        "ce_time": "2024-05-01T12:00:00Z",
        "ce_partitionkey": "order-1",
        "ce_correlationid": str(event.correlation_id),
        "es-version": "2",
        "es-position": "17",
        "es-recorded-at": "2024-05-01T12:00:00Z",
        "es-metadata": b'{"traceparent":"%s","by":"ann"}' % traceparent.encode(),
        "es-prev": b'{"order.placed":1}',
        "traceparent": traceparent,
    }


def test_a_traceparent_that_is_none_gets_no_header() -> None:
    assert "traceparent" not in dict(encode_message("m", recorded(metadata={"traceparent": "x"})).headers)


def test_a_draft_travels_as_given() -> None:
    event = draft(data={"number": 1})
    message = encode_message("m", event)

    rebuilt, predecessors = decode_event(message.value, as_received(message.headers))

    assert type(rebuilt) is BaseEvent
    assert rebuilt.model_dump() == event.model_dump()
    assert predecessors == {}


@pytest.mark.parametrize(
    ("value", "changes"),
    [
        (b"not json", {}),
        (None, {}),
        (b"{}", {"ce_id": b"17"}),
        (b"{}", {"ce_id": b"\xff"}),
        (b"{}", {"ce_time": b"yesterday"}),
        (b"{}", {"es-position": b"first"}),
        (b"{}", {"es-prev": b"["}),
        (b"{}", {"ce_type": None}),
    ],
)
def test_what_is_no_event_of_ours_is_refused(value: bytes | None, changes: dict[str, bytes | None]) -> None:
    headers = dict(as_received(encode_message("m", recorded(), {}).headers)) | changes

    with pytest.raises(InvalidEventError, match="not an event of this system"):
        decode_event(value, list(headers.items()))


def test_no_event_type_may_be_taken_for_dead_letters() -> None:
    with pytest.raises(InvalidEventError, match="dead letters"):
        topic_of("migration", "dlq.order")


def test_a_message_of_an_older_release_is_read_as_the_newest(own_registry: None) -> None:
    release(1)
    event = recorded(event_type=TYPE, data={"passenger": "Ada Lovelace"})
    message = encode_message("migration", event)
    release(3)
    read, _ = decode_event(message.value, as_received(message.headers))
    assert read.data == {"given_name": "Ada", "family_name": "Lovelace", "party": 1}
    assert read.metadata == {"schema_version": 3}
    again = encode_message("migration", read)
    assert decode_event(again.value, as_received(again.headers))[0] == read
    release(2)
    with pytest.raises(UpcastError, match="schema_version 3"):
        decode_event(again.value, as_received(again.headers))


def recorded(**changes: Any) -> RecordedEvent:
    event = draft(**{"event_type": "order.paid", "timestamp": NOON, **changes})
    fields = {name: getattr(event, name) for name in BaseEvent.model_fields}
    return RecordedEvent.from_store({**fields, "event_version": 2, "position": 17, "recorded_at": NOON})
