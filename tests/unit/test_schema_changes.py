"""Which changes of an event keep the promise to its readers, and that each breaking one is caught."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from enum import StrEnum
from typing import Any, Literal

import pytest
from pydantic import Field

from eventsourcing import BreakingChangeError, EventPayload, TypedEvent
from eventsourcing.schema_changes import accept, changes
from eventsourcing.schemas import ENVELOPE, event_schemas
from tests.seats import TYPE, own_registry, release

pytestmark = pytest.mark.usefixtures("own_registry")
__all__ = ["own_registry"]


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Colours(StrEnum):
    RED = "red"
    GREEN = "green"


class Before(EventPayload):
    """The payload that was accepted."""

    name: str
    age: int | None = None
    tags: list[str] = Field(default_factory=list)
    colour: Colour = Colour.RED
    counts: dict[str, int] = Field(default_factory=dict)
    kind: Literal["a", "b"] = "a"


def schemas_with(payload: type[EventPayload], doc: str = "Something.") -> dict[str, Any]:
    made: Any = type(TypedEvent)(
        "Happened",
        (TypedEvent,),
        {"__module__": __name__, "__doc__": doc, "__annotations__": {}, "__qualname__": "Happened"}
        | {
            "Payload": type(
                "Payload", (payload,), {"__module__": __name__, "__qualname__": "Happened.Payload"}
            )
        },
        event_type="test.happened",
        aggregate_type="thing",
    )  # type: ignore[misc]  # mypy knows no metaclass call
    return event_schemas([made])


def found(after: type[EventPayload]) -> list[str]:
    return [str(change) for change in changes(schemas_with(Before), schemas_with(after))]


CURE = "declare schema_version=2 with an @upcast(1)"


def test_nothing_changed() -> None:
    assert found(Before) == []


def without(name: str) -> type[EventPayload]:
    """The payload without one of its fields."""
    fields = {
        other: (field.annotation, field) for other, field in Before.model_fields.items() if other != name
    }
    annotations = {other: annotation for other, (annotation, _) in fields.items()}
    defaults = {other: field for other, (_, field) in fields.items() if not field.is_required()}
    return type(
        "After", (EventPayload,), {"__annotations__": annotations, "__module__": __name__, **defaults}
    )


@pytest.mark.parametrize("name", list(Before.model_fields))
def test_planted_a_removed_field_is_breaking(name: str) -> None:
    assert found(without(name)) == [f"breaking: test.happened: data.{name} was removed; {CURE}"]


def _required() -> type[EventPayload]:
    class After(Before):
        age: int | None

    return After


def _optional() -> type[EventPayload]:
    class After(Before):
        name: str = ""

    return After


def _new_and_required() -> type[EventPayload]:
    class After(Before):
        surname: str

    return After


def _another_type() -> type[EventPayload]:
    class After(Before):
        name: int  # type: ignore[assignment]  # the change is the case

    return After


def _null() -> type[EventPayload]:
    class After(Before):
        name: str | None  # type: ignore[assignment]  # the change is the case

    return After


def _items() -> type[EventPayload]:
    class After(Before):
        tags: list[int] = Field(default_factory=list)  # type: ignore[assignment]  # the change is the case

    return After


def _values() -> type[EventPayload]:
    class After(Before):
        counts: dict[str, str] = Field(default_factory=dict)  # type: ignore[assignment]  # the change is the case

    return After


def _enum() -> type[EventPayload]:
    class After(Before):
        colour: Colours = Colours.RED  # type: ignore[assignment]  # the change is the case

    return After


def _literal() -> type[EventPayload]:
    class After(Before):
        kind: Literal["a", "b", "c"] = "a"  # type: ignore[assignment]  # the change is the case

    return After


def _bound() -> type[EventPayload]:
    class After(Before):
        name: str = Field(max_length=3)

    return After


@pytest.mark.parametrize(
    ("after", "change"),
    [
        (_required, "data.age was made required"),
        (_optional, "data.name was made optional"),
        (_new_and_required, "data.surname is new and required"),
        (_another_type, "data.name changed its type from string to integer"),
        (_null, "data.name changed its type from string to string or null"),
        (_items, "data.tags[] changed its type from string to integer"),
        (_values, "data.counts[] changed its type from integer to string"),
        (_enum, "data.colour changed its enum from ['red', 'blue'] to ['red', 'green']"),
        (_literal, "data.kind changed its enum from ['a', 'b'] to ['a', 'b', 'c']"),
        (_bound, "data.name changed its maxLength from None to 3"),
    ],
)
def test_planted_a_breaking_change_is_named_with_its_cure(
    after: Callable[[], type[EventPayload]], change: str
) -> None:
    assert f"breaking: test.happened: {change}; {CURE}" in found(after())
    with pytest.raises(BreakingChangeError, match="breaking"):
        accept(schemas_with(Before), schemas_with(after()))


def test_a_new_optional_field_and_other_words_are_compatible() -> None:
    class After(Before):
        surname: str = Field(default="", description="The other name.")
        age: int | None = Field(default=None, description="In years.")

    before, after = schemas_with(Before), schemas_with(After, "Something else.")
    assert sorted(map(str, changes(before, after))) == [
        "compatible: test.happened: data changed its description",
        "compatible: test.happened: data.age changed its description",
        "compatible: test.happened: data.surname is new and optional",
    ]
    assert accept(before, after) == after


def test_a_new_field_is_breaking_where_readers_were_told_of_no_other() -> None:
    before = schemas_with(Before)
    before["test.happened.v1.json"]["additionalProperties"] = False

    class After(Before):
        surname: str = ""

    told = [str(change) for change in changes(before, schemas_with(After))]
    assert f"breaking: test.happened: data.surname is new where no further field was allowed; {CURE}" in told


def test_a_new_type_is_compatible_and_a_lost_one_is_not() -> None:
    with_it, without_it = event_schemas([release(1)]), event_schemas([])
    assert [str(change) for change in changes(without_it, with_it)] == [f"compatible: {TYPE} is a new type"]
    [lost] = changes(with_it, without_it)
    assert (lost.breaking, lost.event_type, lost.what) == (True, TYPE, "is not registered any more")


def test_a_new_version_with_its_upcast_is_compatible_and_the_old_document_stays() -> None:
    old, new = event_schemas([release(1)]), event_schemas([release(2)])
    assert [str(change) for change in changes(old, new)] == [
        f"compatible: {TYPE} is at version 2, upcast from 1"
    ]
    kept = accept(old, new)
    assert set(kept) == {ENVELOPE, f"{TYPE}.v1.json", f"{TYPE}.v2.json"}
    assert changes(kept, new) == []


def test_a_version_that_was_accepted_cannot_go_back() -> None:
    kept = accept(event_schemas([release(1)]), event_schemas([release(3)]))
    [change] = changes(kept, event_schemas([release(2)]))
    assert (change.breaking, change.what) == (True, "is back at version 2")


def test_a_change_of_a_declared_aggregate_type_is_breaking() -> None:
    before = schemas_with(Before)
    after = deepcopy(before)
    after["test.happened.v1.json"]["x-aggregate-type"] = "another"
    [change] = changes(before, after)
    assert (change.breaking, change.what) == (True, "changed its x-aggregate-type from thing to another")


@pytest.mark.parametrize("change", ["remove", "retype", "require"])
def test_planted_a_breaking_change_of_the_envelope_is_caught(change: str) -> None:
    before = event_schemas([])
    after = deepcopy(before)
    if change == "remove":
        del after[ENVELOPE]["properties"]["position"]
    elif change == "retype":
        after[ENVELOPE]["properties"]["position"]["type"] = "string"
    else:
        after[ENVELOPE]["properties"]["region"] = {"type": "string"}
        after[ENVELOPE]["required"].append("region")
    told = [str(one) for one in changes(before, after) if one.breaking]
    assert told
    assert all(line.startswith("breaking: the envelope: ") for line in told)


def test_definitions_that_refer_to_themselves_are_compared_once() -> None:
    def tree(leaf: str) -> dict[str, Any]:
        node = {
            "type": "object",
            "properties": {"leaf": {"type": leaf}, "next": {"$ref": "#/$defs/Node"}},
        }
        schema = {
            "x-event-type": "test.tree",
            "x-schema-version": 1,
            "type": "object",
            "properties": {"root": {"$ref": "#/$defs/Node"}},
            "$defs": {"Node": node},
        }
        return {**event_schemas([]), "test.tree.v1.json": schema}

    assert changes(tree("string"), tree("string")) == []
    [change] = changes(tree("string"), tree("integer"))
    assert change.field == "data.root.leaf"
