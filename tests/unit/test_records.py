"""A record made of a row: its fields come when they are read, and it is the record that was never a row."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from pydantic import ValidationError

from eventsourcing import BaseEvent, RecordedEvent, UserMigratedEvent
from eventsourcing.canonical import encode
from tests.factories import recorded

SEEN = ("position", "data")


def written() -> RecordedEvent:
    """A record whose fields were all given."""
    draft = UserMigratedEvent(user_id="user-1", username="ann", source_data={"n": 1}, target_data={})
    draft.metadata = {"who": "ann"}
    return recorded(draft, position=7)


def read(event: RecordedEvent) -> RecordedEvent:
    """The same record as a database gives it."""
    row = [event.__dict__[name] for name in RecordedEvent.model_fields]
    for name in ("metadata", "data"):
        place = list(RecordedEvent.model_fields).index(name)
        row[place] = encode(row[place])
    row[1] = str(row[1])
    return RecordedEvent.from_row(row)


VIEWS: dict[str, Callable[[RecordedEvent], Any]] = {
    "fields": lambda event: {name: getattr(event, name) for name in RecordedEvent.model_fields},
    "dictionary": lambda event: list(event.__dict__.items()),
    "dump": lambda event: event.model_dump(),
    "JSON": lambda event: event.model_dump_json(),
    "pairs": list,
    "text": repr,
    "copy": copy.copy,
    "deep copy": copy.deepcopy,
    "changed copy": lambda event: event.model_copy(update={"position": 9}),
    "pickle": lambda event: pickle.loads(pickle.dumps(event)),
    "validated": RecordedEvent.model_validate,
    "built again": lambda event: RecordedEvent.model_validate(event.model_dump()),
    "itself": lambda event: event,
}


@pytest.mark.parametrize("seen", [(), *((name,) for name in SEEN), SEEN], ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_a_record_of_a_row_looks_like_any_other(view: str, seen: tuple[str, ...]) -> None:
    event = written()
    twin = read(event)
    for name in seen:
        getattr(twin, name)
    assert VIEWS[view](twin) == VIEWS[view](event)
    assert type(twin.event_type) is type(event.event_type)


@pytest.mark.parametrize("name", ["metadata", "data"])
def test_a_payload_is_made_once(name: str) -> None:
    event = read(written())
    getattr(event, name)["more"] = 1
    assert getattr(event, name)["more"] == 1
    assert event.model_dump()[name]["more"] == 1


def test_a_record_of_a_row_is_frozen() -> None:
    event = read(written())
    with pytest.raises(ValidationError):
        event.position = 8  # type: ignore[misc]  # what is refused
    assert event.position == 7


def test_the_first_and_the_last_moment_have_a_zone() -> None:
    event = written()
    row = [event.__dict__[name] for name in RecordedEvent.model_fields]
    row[5], row[8], row[9] = datetime.max, b"{}", b"{}"  # noqa: DTZ901 - as the driver gives infinity
    assert RecordedEvent.from_row(row).timestamp.tzinfo is not None


def test_neither_class_has_a_field_for_itself() -> None:
    assert not any(
        hasattr(cls, name) for cls in (BaseEvent, RecordedEvent) for name in BaseEvent.model_fields
    )


class Narrower(RecordedEvent):
    """A record as a team may specialise it."""

    note: str = "none"


def test_a_subclass_has_the_same_fields() -> None:
    assert set(Narrower.model_fields) == {*RecordedEvent.model_fields, "note"}
    assert Narrower(**written().model_dump(), note="x").note == "x"
