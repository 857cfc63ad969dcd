"""Events: what a draft takes, what a typed event makes of its arguments, and the registry."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

from eventsourcing import (
    OCCURRED,
    EventPayload,
    EventType,
    InvalidEventError,
    MigrationStartedEvent,
    RecordedEvent,
    TypedEvent,
    UserMigratedEvent,
    parse_event,
    register_event,
)
from eventsourcing.events import (
    deterministic_event_id,
    event_class,
    new_event_id,
    registered_events,
)
from tests.factories import NOON, draft, recorded


class SeatBooked(TypedEvent, event_type="test.seat.booked", aggregate_type="seat", id_field="seat_id"):
    """A team's own event."""

    class Payload(EventPayload):
        passenger: str
        row: int = 1
        booked_at: datetime = OCCURRED


register_event(SeatBooked)


def started(**fields: Any) -> MigrationStartedEvent:
    return MigrationStartedEvent(migration_id="migration-1", source_config={}, target_config={}, **fields)


def test_a_draft_takes_no_field_beyond_the_published_ones() -> None:
    with pytest.raises(ValidationError):
        draft(other=1)


def test_ids_are_random_time_ordered_uuids() -> None:
    ids = [new_event_id() for _ in range(1000)]
    assert {event_id.version for event_id in ids} == {7}
    assert ids == sorted(ids)
    assert len(set(ids)) == 1000


def test_a_deterministic_id_is_a_uuid8_that_begins_with_the_runs_start() -> None:
    one = deterministic_event_id(NOON, "migration-1", "user", "17")
    assert one == deterministic_event_id(NOON, "migration-1", "user", "17")
    assert one.version == 8
    assert one.variant == UUID(int=0x8000 << 48).variant
    assert one.int >> 80 == int(NOON.timestamp() * 1000)
    others = [("migration-1", "user", "18"), ("migration-1", "user17"), ("migration-1user", "17")]
    assert len({one, *(deterministic_event_id(NOON, *parts) for parts in others)}) == 4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("event_type", ""),
        ("event_type", "Order.Placed"),
        ("event_type", ".order"),
        ("event_type", "order placed"),
        ("event_type", "a" * 129),
        ("event_type", "order.placed\n"),
        ("aggregate_id", ""),
        ("aggregate_id", "a" * 256),
        ("aggregate_id", "a\nb"),
        ("aggregate_id", "a" + chr(0)),
        ("aggregate_id", "a\x85"),
        ("aggregate_type", ""),
        ("aggregate_type", "a\x7f"),
        ("event_version", -1),
        ("event_version", 2**31),
        ("event_id", "no-uuid"),
        ("correlation_id", "no-uuid"),
        ("timestamp", "yesterday"),
        ("timestamp", "0001-01-01T00:00:00+01:00"),
        ("timestamp", datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-5)))),
        ("data", []),
        ("metadata", "text"),
    ],
)
def test_a_draft_that_no_store_would_take_is_refused_by_its_field(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        draft(**{field: value})
    assert [error["loc"] for error in caught.value.errors()] == [(field,)]


def test_a_refused_value_is_not_echoed() -> None:
    with pytest.raises(ValidationError) as caught:
        draft(data="hunter2")
    assert "hunter2" not in str(caught.value)


def test_one_of_our_types_becomes_its_member_and_a_teams_stays_text() -> None:
    assert draft(event_type="user.migrated").event_type is EventType.USER_MIGRATED
    assert draft(event_type="order.placed").event_type == "order.placed"


def test_timestamps_are_kept_in_utc() -> None:
    elsewhere = NOON.astimezone(timezone(timedelta(hours=3)))
    assert draft(timestamp=elsewhere).timestamp.tzinfo == UTC
    assert draft(timestamp=NOON.replace(tzinfo=None)).timestamp == NOON


def test_following_copies_the_correlation_and_names_the_cause() -> None:
    parent = draft(correlation_id=UUID(int=5))
    child = draft("order-2").follow(parent)
    assert (child.correlation_id, child.causation_id) == (UUID(int=5), parent.event_id)


def test_following_an_uncorrelated_event_correlates_with_its_id() -> None:
    parent = recorded(draft(), position=1)
    child = draft("order-2").follow(parent)
    grandchild = started().follow(child)
    assert child.correlation_id == grandchild.correlation_id == parent.event_id
    assert grandchild.causation_id == child.event_id


def test_a_typed_event_takes_its_payload_beside_the_events_own_fields() -> None:
    event = SeatBooked(seat_id="12A", passenger="Ada", timestamp=NOON, metadata={"by": "us"})
    assert (event.event_type, event.aggregate_type, event.aggregate_id) == ("test.seat.booked", "seat", "12A")
    assert event.data == {"passenger": "Ada", "row": 1, "booked_at": "2024-05-01T12:00:00Z"}
    assert event.metadata == {"by": "us"}


def test_a_typed_event_may_be_built_from_stored_fields() -> None:
    first = SeatBooked(seat_id="12A", passenger="Ada", timestamp=NOON)
    again = SeatBooked(**first.model_dump())
    assert again.model_dump() == first.model_dump()


def test_extra_keys_of_a_payload_are_kept_in_canonical_form() -> None:
    event = SeatBooked(seat_id="12A", passenger="Ada", meal=UUID(int=1), booked_at=NOON)
    assert event.data["meal"] == str(UUID(int=1))


def test_a_payload_without_a_required_field_is_refused() -> None:
    with pytest.raises(ValidationError) as caught:
        SeatBooked(seat_id="12A")
    assert [error["loc"] for error in caught.value.errors()] == [("passenger",)]


def test_defaulted_moments_are_the_timestamp_and_follow_it() -> None:
    event = started()
    assert datetime.fromisoformat(event.data["started_at"]) == event.timestamp
    event.timestamp = NOON
    assert event.data["started_at"] == "2024-05-01T12:00:00Z"
    assert event.defaulted_payload == {"started_at"}


def test_a_moment_that_was_given_stays_when_the_timestamp_changes() -> None:
    event = started(started_at=NOON)
    event.timestamp = NOON + timedelta(days=1)
    assert event.data["started_at"] == "2024-05-01T12:00:00Z"
    assert event.defaulted_payload == frozenset()


def test_a_given_timestamp_reaches_the_payload() -> None:
    assert started(timestamp=NOON).data["started_at"] == "2024-05-01T12:00:00Z"


def test_an_assignment_is_validated() -> None:
    event = started()
    with pytest.raises(ValidationError):
        event.timestamp = "yesterday"  # type: ignore[assignment]  # the wrong type is the case


def test_a_recorded_event_is_frozen() -> None:
    stored = recorded(draft(), position=3)
    with pytest.raises(ValidationError):
        setattr(stored, "position", 4)  # noqa: B010 - the types forbid it, a caller may not know them
    with pytest.raises(ValidationError):
        setattr(stored, "timestamp", NOON)  # noqa: B010 - see above


def test_a_recorded_event_equals_its_validated_twin() -> None:
    stored = recorded(draft(timestamp=NOON), position=3)
    assert RecordedEvent.model_validate(stored.model_dump()) == stored
    assert RecordedEvent.model_validate_json(stored.model_dump_json()) == stored


def test_registering_a_class_again_changes_nothing() -> None:
    assert register_event(SeatBooked) is SeatBooked
    assert event_class("test.seat.booked") is SeatBooked


def test_a_type_held_by_another_class_is_refused() -> None:
    class Rival(TypedEvent, event_type="test.seat.booked", aggregate_type="seat"):
        class Payload(EventPayload):
            pass

    with pytest.raises(ValueError, match=r"test\.seat\.booked.*SeatBooked"):
        register_event(Rival)
    assert event_class("test.seat.booked") is SeatBooked


def test_a_class_without_a_payload_or_with_a_malformed_type_is_refused() -> None:
    with pytest.raises(TypeError, match="Payload"):

        class Empty(TypedEvent, event_type="test.empty", aggregate_type="x"):
            pass

    with pytest.raises(ValueError, match="event type"):

        class Loud(TypedEvent, event_type="LOUD", aggregate_type="x"):
            pass


def test_every_type_of_ours_has_one_class() -> None:
    ours = {cls.declared_type for cls in registered_events() if cls.__module__.startswith("eventsourcing.")}
    assert ours == set(EventType)


def test_moments_are_the_only_payload_fields_of_ours_with_a_default() -> None:
    for cls in registered_events():
        if cls.__module__.startswith("eventsourcing."):
            defaulted = {
                name for name, field in cls.payload_model.model_fields.items() if not field.is_required()
            }
            assert all(name.endswith("_at") for name in defaulted), cls


FIELDS = {
    "event_type": "user.migrated",
    "aggregate_id": "user-1",
    "aggregate_type": "user",
    "data": {"username": "ada", "source_data": {}, "target_data": {}},
}


def test_a_strangers_fields_become_the_typed_event() -> None:
    event = parse_event({**FIELDS, "timestamp": "2024-05-01T12:00:00Z"})
    assert isinstance(event, UserMigratedEvent)
    assert event.data["migrated_at"] == "2024-05-01T12:00:00Z"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"event_type": "order.placed"}, "event_type"),
        ({"event_type": None}, "event_type"),
        ({"event_type": 5}, "event_type"),
        ({"position": 5}, "position"),
        ({"username": "ada"}, "username"),
        ({"aggregate_id": ""}, "aggregate_id"),
        ({"aggregate_id": None}, "aggregate_id"),
        ({"event_version": -1}, "event_version"),
        ({"correlation_id": "x"}, "correlation_id"),
        ({"data": None}, "data"),
        ({"data": []}, "data"),
        ({"data": {"username": "ada", "source_data": {}}}, "data.target_data"),
        ({"data": {"username": 5, "source_data": {}, "target_data": {}}}, "data.username"),
        ({"data": {**FIELDS["data"], "migrated_at": "soon"}}, "data.migrated_at"),  # type: ignore[dict-item]  # a dict
        ({"metadata": []}, "metadata"),
        ({"timestamp": "0001-01-01T00:00:00+01:00"}, "timestamp"),
    ],
)
def test_a_wrong_field_is_named_by_its_path(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidEventError) as caught:
        parse_event({**FIELDS, **changes})
    assert caught.value.field == field


def test_a_type_left_out_is_named() -> None:
    with pytest.raises(InvalidEventError) as caught:
        parse_event({"aggregate_id": "user-1"})
    assert caught.value.field == "event_type"


def test_a_secret_in_a_config_is_named_and_not_echoed() -> None:
    fields = {
        "event_type": "migration.started",
        "aggregate_id": "migration-1",
        "aggregate_type": "migration",
        "data": {"source_config": {"password": "hunter2"}, "target_config": {}},
    }
    with pytest.raises(InvalidEventError) as caught:
        parse_event(fields)
    assert caught.value.field == "data.source_config"
    assert "password" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_values_that_have_no_json_form_are_refused_by_their_path() -> None:
    with pytest.raises(InvalidEventError) as caught:
        parse_event({**FIELDS, "data": {**FIELDS["data"], "source_data": {"x": float("nan")}}})  # type: ignore[dict-item]  # a dict
    assert caught.value.field == "data.source_data.x"
