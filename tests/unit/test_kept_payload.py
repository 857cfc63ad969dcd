"""A draft keeps its payload as bytes until somebody reads it, and is the draft that never did."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventsourcing import BaseEvent, InvalidEventError, UserMigratedEvent
from eventsourcing.canonical import decode, encode
from eventsourcing.drafts import prepare
from eventsourcing.events import MAX_EVENT_BYTES
from tests.factories import NOON, draft

PAYLOAD = {"username": "ann", "source_data": {"n": 1}, "target_data": {"when": NOON}}


def unread(**fields: Any) -> UserMigratedEvent:
    return UserMigratedEvent(**{"user_id": "user-1", "timestamp": NOON, **PAYLOAD, **fields})


def read(event: BaseEvent) -> BaseEvent:
    """The same draft, after somebody looked at its payload."""
    assert event.data
    assert event.encoded_payload is None
    return event


VIEWS: dict[str, Callable[[BaseEvent], Any]] = {
    "dictionary": lambda event: list(event.__dict__.items()),
    "dump": lambda event: event.model_dump(),
    "JSON": lambda event: event.model_dump_json(),
    "text": repr,
    "pairs": list,
    "copy": copy.copy,
    "deep copy": copy.deepcopy,
    "changed copy": lambda event: event.model_copy(update={"event_version": 9}),
    "pickle": lambda event: pickle.loads(pickle.dumps(event)),
    "stored": lambda event: prepare([event])[0][1:],
    "itself": lambda event: event,
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_draft_nobody_read_looks_like_one_that_was(view: str) -> None:
    event = unread()
    twin = read(unread(event_id=event.event_id))
    assert event.encoded_payload is not None
    assert VIEWS[view](event) == VIEWS[view](twin)
    assert event == twin


CHANGES: dict[str, Callable[[BaseEvent], Any]] = {
    "a key": lambda event: event.data.update(username="eve"),
    "deep within": lambda event: event.data["source_data"].update(n=2),
    "the whole": lambda event: setattr(event, "data", {"username": "eve"}),
    "by its dictionary": lambda event: event.__dict__["data"].update(username="eve"),
    "the moment it follows": lambda event: setattr(event, "timestamp", NOON.replace(year=2020)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_payload_is_what_is_stored(change: str) -> None:
    event = unread()
    before = prepare([event])[0].data
    CHANGES[change](event)
    after = prepare([event])[0].data
    assert before != after == encode(event.data)


def test_what_the_caller_changes_of_his_own_is_not_stored() -> None:
    own = {"n": 1}
    event = unread(source_data=own)
    own["n"] = 2
    assert decode(prepare([event])[0].data)["source_data"] == {"n": 1}


def test_following_another_event_keeps_the_payload() -> None:
    event = unread().follow(draft())
    assert event.data["username"] == "ann"
    assert event.causation_id is not None


def test_bytes_that_were_kept_are_measured() -> None:
    with pytest.raises(InvalidEventError, match="bytes encoded") as refused:
        prepare([unread(), unread(source_data={"filler": "x" * MAX_EVENT_BYTES})])
    assert (refused.value.field, refused.value.index) == ("data", 1)


def test_a_failed_change_leaves_the_draft_as_it_was() -> None:
    event = unread()
    with pytest.raises(ValueError, match="aggregate_id"):
        event.aggregate_id = ""
    assert prepare([event])[0].data == prepare([unread()])[0].data


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
    | st.datetimes()
    | st.decimals(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('abcß"\\', max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(values)
def test_what_is_kept_is_what_would_be_encoded_again(value: Any) -> None:
    kept = prepare([unread(source_data={"value": value})])[0].data
    again = prepare([read(unread(source_data={"value": value}))])[0].data
    assert kept == again
