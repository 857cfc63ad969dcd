"""How an event class declares the versions of its payload, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from eventsourcing import (
    EventPayload,
    InvalidEventError,
    RecordedEvent,
    TypedEvent,
    UpcastError,
    parse_event,
    upcast,
)
from eventsourcing.upcasting import Lineage
from tests.factories import draft, recorded
from tests.seats import TYPE, own_registry, release

pytestmark = pytest.mark.usefixtures("own_registry")
__all__ = ["own_registry"]


def declare(schema_version: int, *steps: int, **members: Any) -> type[TypedEvent]:
    """A class with one upcast from each of these versions."""
    functions = {f"step_{place}": upcast(version)(fresh()) for place, version in enumerate(steps)}
    payload = type("Payload", (EventPayload,), {"__module__": __name__, "__qualname__": "Versioned.Payload"})
    body = {"__module__": __name__, "__qualname__": "Versioned", "Payload": payload, **functions, **members}
    declared = {"event_type": "test.versioned", "aggregate_type": "x", "schema_version": schema_version}
    made: type[TypedEvent] = type(TypedEvent)(  # type: ignore[misc]  # mypy knows no metaclass call
        "Versioned", (TypedEvent,), body, **declared
    )
    return made


def fresh() -> Any:
    return lambda data: data


@pytest.mark.parametrize(
    ("schema_version", "steps", "message"),
    [
        (2, (), r"has no @upcast\(1\), the way from version 1 to 2"),
        (4, (1, 3), r"has no @upcast\(2\), the way from version 2 to 3"),
        (2, (1, 1), r"has 2 @upcast\(1\)"),
        (2, (1, 2), r"@upcast\(2\) leads beyond it"),
        (1, (0,), r"@upcast\(0\) leads beyond it"),
        (0, (), "whole number from 1"),
    ],
)
def test_a_lineage_with_a_gap_is_refused(schema_version: int, steps: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        declare(schema_version, *steps)


def test_the_order_of_the_functions_does_not_matter_and_staticmethod_may_stand_beneath() -> None:
    beneath = upcast(2)(staticmethod(fresh()))
    cls = declare(4, 3, 1, beneath=beneath)
    assert cls.lineage.newest == 4
    assert cls.lineage.steps[1] is beneath.__func__


def test_each_step_gets_what_the_one_before_it_returned_in_canonical_values() -> None:
    lineage = Lineage("x", (lambda data: {"n": (data["n"],)}, lambda data: {"n": [*data["n"], 2]}))
    assert lineage.upcast({"n": 1}, 1) == {"n": [1, 2]}
    assert lineage.upcast({"n": []}, 2) == {"n": [2]}


@pytest.mark.parametrize("wrong", [None, [], "text", {"n": float("nan")}, {"n": object()}, {1: 2}])
def test_what_an_upcast_returns_must_be_a_payload(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"@upcast\(1\)"):
        Lineage("x", (lambda _: wrong,)).upcast({}, 1)


@pytest.mark.parametrize("version", [0, 4, "1", True, 1.0, None])
def test_a_draft_cannot_claim_a_version_that_this_code_does_not_write(version: Any) -> None:
    cls = release(3)
    with pytest.raises(InvalidEventError) as caught:
        parse_event(
            {
                "event_type": cls.declared_type,
                "aggregate_id": "seat-1",
                "data": {"given_name": "Ada", "family_name": "", "party": 1},
                "metadata": {"schema_version": version},
            }
        )
    assert caught.value.field == "metadata.schema_version"


def test_a_stranger_may_send_an_older_payload_that_says_so() -> None:
    release(3)
    fields = {"event_type": TYPE, "aggregate_id": "seat-1", "data": {"passenger": "Ada Lovelace"}}
    event = parse_event({**fields, "metadata": {"schema_version": 1}})
    assert event.data["family_name"] == "Lovelace"
    assert event.metadata == {"schema_version": 3}
    with pytest.raises(InvalidEventError, match="given_name"):
        parse_event(fields)
    with pytest.raises(InvalidEventError, match=r"data: @upcast\(1\) failed with KeyError$"):
        parse_event({**fields, "data": {}, "metadata": {"schema_version": 1}})


def test_a_record_that_was_dumped_under_an_older_release_is_read_as_the_newest() -> None:
    release(1)
    old = recorded(draft(event_type=TYPE, data={"passenger": "Ada Lovelace"}), position=1)
    release(2)
    for read in (RecordedEvent.model_validate(old.model_dump()), RecordedEvent(**old.model_dump())):
        assert (read.data["family_name"], read.metadata) == ("Lovelace", {"schema_version": 2})
    assert old.data == {"passenger": "Ada Lovelace"}
    release(1)
    with pytest.raises(UpcastError):
        RecordedEvent.model_validate(read.model_dump())


def test_a_record_of_an_unregistered_type_keeps_its_payload() -> None:
    data = {"n": 1}
    assert recorded(draft(data=data, metadata={"schema_version": 5}), position=1).data == data
