"""The event as the store holds it; one that comes of a row makes its fields when they are read (ADR 29)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

from eventsourcing.base_event import (
    BaseEvent,
    EventType,
    UtcDatetime,
    set_extra,
    set_fields,
    set_names,
    set_private,
)
from eventsourcing.canonical import decode, utc
from eventsourcing.upcasting import SCHEMA_VERSION, VERSIONED, read_newest


class RecordedEvent(BaseEvent):
    """An event as the store holds it: frozen, with its place in the global order.

    `position` grows along the store and is unique; `recorded_at` is when the store took it. One that
    comes from a row makes a field when it is first read: a replay or a filter looks at few of them.
    """

    model_config = ConfigDict(frozen=True)

    __slots__ = ("_row",)

    if TYPE_CHECKING:
        _row: Sequence[Any] | None
        """The row whose fields are not all made yet; None when they are."""

    position: int
    recorded_at: UtcDatetime

    @classmethod
    def from_store(cls, fields: dict[str, Any], *, as_stored: bool = False) -> RecordedEvent:
        """Wrap fields that the store itself wrote, without validating them a second time.

        An old payload becomes the newest one, unless it is wanted `as_stored`. Raises UpcastError when it
        cannot.
        """
        versioned = fields["event_type"] in VERSIONED or SCHEMA_VERSION in fields["metadata"]
        if versioned and not as_stored:
            read_newest(fields)
        event = _new(cls)
        event.__dict__ = fields
        set_names(event, _RECORDED_FIELDS)
        set_extra(event, None)
        set_private(event, None)
        return event

    @classmethod
    def from_row(cls, row: Sequence[Any], *, as_stored: bool = False) -> RecordedEvent:
        """Wrap a row that the store wrote: all fields in order, the payloads encoded. See from_store."""
        event = _new(cls)
        _set_row(event, row)
        set_names(event, _RECORDED_FIELDS)
        set_extra(event, None)
        set_private(event, None)
        if (row[_TYPE] in VERSIONED or _NAMES_VERSION in row[_METADATA]) and not as_stored:
            read_newest(event.__dict__)
        return event

    if not TYPE_CHECKING:  # to checkers an instance has a dictionary like any other

        @property
        def __dict__(self) -> dict[str, Any]:
            """All fields: whoever looks here - pydantic, a copy, an encoder - finds none that is not made."""
            row, made = self._row, _get_fields(self)
            if row is None:
                return made
            fields = {
                name: made[name] if name in made else field.made(row) for name, field in _FIELDS.items()
            }
            self.__dict__ = fields
            return fields

        @__dict__.setter
        def __dict__(self, fields: dict[str, Any]) -> None:
            _set_row(self, None)
            set_fields(self, fields)

    @model_validator(mode="after")
    def _read_newest(self) -> Self:
        """One that is built from a dump, as a dead letter is, has the newest payload too."""
        if self.event_type in VERSIONED or SCHEMA_VERSION in self.metadata:
            read_newest(self.__dict__)
        return self


class _Unread:
    """A field of a record that nobody has read yet; what stands in the record's dictionary goes before."""

    def __init__(self, name: str, place: int) -> None:
        self._name, self._place, self._make = name, place, _MAKERS.get(name)

    def made(self, row: Sequence[Any]) -> Any:
        """The field of a row."""
        value = row[self._place]
        return value if self._make is None else self._make(value)

    def __get__(self, event: RecordedEvent | None, owner: type) -> Any:
        try:
            value = event._row[self._place]  # type: ignore[union-attr, index]  # asking first costs every read
        except (AttributeError, TypeError):
            raise AttributeError(self._name) from None  # no class has a field; nor has one built without it
        make = self._make
        if make is None:
            return value
        value = make(value)
        if make is decode:  # once: whoever changes a payload changes what the next one reads
            _get_fields(event)[self._name] = value
        return value


class _Types(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return name


_MAKERS: dict[str, Callable[[Any], Any]] = {
    "event_type": _Types((member.value, member) for member in EventType).__getitem__,
    # The driver gives the first and the last moment there is without a zone.
    "timestamp": lambda moment: moment if moment.tzinfo else utc(moment),
    "metadata": decode,
    "data": decode,
}
"""How a field is made of what stands in a row; others stand there as they are."""
_FIELDS = {name: _Unread(name, place) for place, name in enumerate(RecordedEvent.model_fields)}
for _name, _field in _FIELDS.items():
    setattr(RecordedEvent, _name, _field)

_RECORDED_FIELDS = set(_FIELDS)
_TYPE, _METADATA = list(_FIELDS).index("event_type"), list(_FIELDS).index("metadata")
_NAMES_VERSION = f'"{SCHEMA_VERSION}"'.encode()
_new = object.__new__
_get_fields = vars(BaseModel)["__dict__"].__get__
_set_row = vars(RecordedEvent)["_row"].__set__
