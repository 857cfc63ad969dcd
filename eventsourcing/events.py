"""Events: drafts that callers make, the records that a store returns, and the registry of their types.

A `BaseEvent` is a validated draft with exactly the published fields. A store turns it into a frozen
`RecordedEvent`, which adds the place in the global order. One declaration makes an event type: a class
with its type, its aggregate and its payload; topics, schemas and checks derive from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from eventsourcing.base_event import (
    MAX_EVENT_BYTES,
    RESERVED_METADATA,
    BaseEvent,
    EventType,
    EventTypeName,
    Identifier,
    UtcDatetime,
    derived_event_id,
    deterministic_event_id,
    known_type,
    named_token,
    new_event_id,
    set_extra,
    set_fields,
    set_names,
    set_private,
)
from eventsourcing.canonical import decode, encode
from eventsourcing.errors import InvalidEventError
from eventsourcing.kept_payload import KeptPayload, set_encoded
from eventsourcing.recorded_event import RecordedEvent
from eventsourcing.upcasting import SCHEMA_VERSION, Lineage, register_lineage, write_newest

__all__ = [
    "MAX_EVENT_BYTES",
    "OCCURRED",
    "RESERVED_METADATA",
    "BaseEvent",
    "EventPayload",
    "EventType",
    "EventTypeName",
    "Identifier",
    "RecordedEvent",
    "TypedEvent",
    "UtcDatetime",
    "derived_event_id",
    "deterministic_event_id",
    "event_class",
    "named_token",
    "new_event_id",
    "parse_event",
    "register_event",
    "registered_events",
]

_DRAFT_FIELDS = frozenset(BaseEvent.model_fields)  # looking them up in the class costs more than the rest
_LEFT_OUT: dict[str, Any] = {"event_version": 0, "correlation_id": None, "causation_id": None, "metadata": {}}


class EventPayload(BaseModel):
    """The payload of a typed event: extra keys are kept, and a field `…_at = OCCURRED` that is left
    out takes the event's timestamp."""

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)


OCCURRED: Any = Field(default=None, description="Defaults to the event's timestamp.")


class TypedEvent(KeptPayload):
    """An event of a declared type: the constructor takes the payload's fields beside the event's own.

    A subclass names its type, its aggregate and the argument that becomes the aggregate_id, and
    declares its payload:

        class SeatBooked(TypedEvent, event_type="seat.booked", aggregate_type="seat", id_field="seat_id"):
            class Payload(EventPayload):
                passenger: str

    A payload that changes gets the next `schema_version`, and a function from the version before it;
    stored events then read as the newest version:

        class SeatBooked(..., schema_version=2):
            class Payload(EventPayload):
                given_name: str
                family_name: str

            @upcast(1)
            def two_names(data):
                given, _, family = data.pop("passenger").partition(" ")
                return {**data, "given_name": given, "family_name": family}

    `personal` names the payload fields that hold personal data, which only some readers may see; a class
    that does not say it is taken to hold nothing else.
    """

    model_config = ConfigDict(extra="ignore")  # whatever is not a field goes into the payload

    if TYPE_CHECKING:  # the class fills these in; checkers must not ask callers for them
        event_type: EventTypeName = ""
        aggregate_id: Identifier = ""
        aggregate_type: Identifier = ""

    declared_type: ClassVar[str]
    declared_aggregate: ClassVar[str]
    id_field: ClassVar[str]
    personal: ClassVar[frozenset[str] | None]
    lineage: ClassVar[Lineage]
    payload_model: ClassVar[type[BaseModel]]

    _defaulted: frozenset[str] = PrivateAttr(default=frozenset())

    def __init_subclass__(
        cls,
        *,
        event_type: str,
        aggregate_type: str,
        id_field: str = "aggregate_id",
        schema_version: int = 1,
        personal: Iterable[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        cls.personal = None if personal is None else frozenset(personal)
        cls.declared_type = known_type(event_type)
        cls.declared_aggregate = aggregate_type
        cls.id_field = id_field
        cls.lineage = Lineage.of(cls, cls.declared_type, schema_version)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        payload = getattr(cls, "Payload", None)
        if not (isinstance(payload, type) and issubclass(payload, BaseModel)):
            raise TypeError(f"{cls.__name__} declares no Payload")
        cls.payload_model = payload

    def __init__(self, **values: Any) -> None:
        if self.id_field != "aggregate_id" and self.id_field in values:
            values["aggregate_id"] = values.pop(self.id_field)
        given = {name: values.pop(name) for name in list(values) if name not in _DRAFT_FIELDS}
        given = {**values.pop("data", {}), **given}
        values.setdefault("event_type", self.declared_type)
        values.setdefault("aggregate_type", self.declared_aggregate)
        super().__init__(**values)
        encoded, self._defaulted = encode_payload(type(self), given, self.timestamp)
        self.keep_payload(encoded)
        self.__pydantic_fields_set__.add("data")

    @classmethod
    def of_valid(cls, fields: Mapping[str, Any]) -> Self:
        """The event of fields that are valid already, as an HTTP body's are; only the payload is checked.

        Raises what the constructor raises for the payload.
        """
        own = {**_LEFT_OUT, **fields}
        if "event_id" not in own:
            own["event_id"] = new_event_id()
        if "timestamp" not in own:
            own["timestamp"] = datetime.now(UTC)
        own["metadata"] = dict(own["metadata"])
        encoded, defaulted = encode_payload(cls, own.pop("data"), own["timestamp"])
        event = object.__new__(cls)
        set_fields(event, own)
        set_names(event, set(fields))
        set_extra(event, None)
        set_private(event, {"_defaulted": defaulted})
        set_encoded(event, encoded)
        return event

    @property
    def defaulted_payload(self) -> frozenset[str]:
        """See BaseEvent.defaulted_payload."""
        return self._defaulted

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "timestamp" and self._defaulted:
            moment = decode(encode(self.timestamp))
            self.data.update(dict.fromkeys(self._defaulted, moment))


def encode_payload(
    cls: type[TypedEvent], given: Mapping[str, Any], timestamp: datetime
) -> tuple[bytes, frozenset[str]]:
    """Validate a payload against its declaration: its canonical JSON, and the fields defaulted.

    Raises pydantic's ValidationError naming the payload's fields, or InvalidEventError.
    """
    model = cls.payload_model
    defaulted = _following(model)
    if not defaulted.isdisjoint(given):
        defaulted = frozenset([name for name in defaulted if given.get(name) is None])
    whole = {**given, **dict.fromkeys(defaulted, timestamp)}
    payload = model.__pydantic_validator__.validate_python(whole)  # what model_validate comes to
    extra = payload.__pydantic_extra__
    return encode({**payload.__dict__, **extra} if extra else payload.__dict__), defaulted


@cache
def _following(model: type[BaseModel]) -> frozenset[str]:
    """The fields of a payload that take the event's timestamp when they are left out."""
    fields = model.model_fields.items()
    return frozenset(name for name, field in fields if name.endswith("_at") and not field.is_required())


_registry: dict[str, type[TypedEvent]] = {}

T = TypeVar("T", bound=TypedEvent)


def register_event(cls: type[T]) -> type[T]:
    """Make a typed event known to every part: validation, HTTP, schemas. Usable as a decorator.

    Raises ValueError when another class holds its type string.
    """
    known = _registry.setdefault(cls.declared_type, cls)
    if (
        known is not cls
        and f"{known.__module__}.{known.__qualname__}" != f"{cls.__module__}.{cls.__qualname__}"
    ):
        raise ValueError(f"event type {cls.declared_type!r} is registered by {known.__name__} already")
    _registry[cls.declared_type] = cls
    register_lineage(cls.lineage)
    return cls


def event_class(event_type: str) -> type[TypedEvent] | None:
    """The class registered for a type, or None."""
    return _registry.get(event_type)


def registered_events() -> Iterable[type[TypedEvent]]:
    """Every registered class, in the order of their types."""
    return [_registry[name] for name in sorted(_registry)]


def _refuse_form(fields: Mapping[str, Any]) -> None:
    """Raise InvalidEventError for fields that no event has, and for a payload that is no object."""
    unknown = set(fields) - _DRAFT_FIELDS
    if unknown:
        raise InvalidEventError("not a field of an event", field=min(unknown))
    if not isinstance(fields.get("data", {}), Mapping):
        raise InvalidEventError("must be an object", field="data")


def parse_event(fields: Mapping[str, Any], *, are_valid: bool = False) -> BaseEvent:
    """Build the typed event that a stranger's fields describe, as HTTP and imports do. Where the event's
    own fields `are_valid`, only the payload is checked.

    A payload whose metadata names an older `schema_version` is upcast first. Raises InvalidEventError
    with the field's path: unknown type, missing or wrong field.
    """
    name = fields.get("event_type")
    cls = event_class(name) if isinstance(name, str) else None
    if cls is None:
        raise InvalidEventError("not a registered event type", field="event_type")
    if not are_valid:
        _refuse_form(fields)
    about = fields.get("metadata")
    if about and isinstance(about, Mapping) and SCHEMA_VERSION in about:
        data, about = write_newest(cls.declared_type, fields.get("data", {}), about)
        fields = {**fields, "data": data, "metadata": about}
    try:
        return cls.of_valid(fields) if are_valid else cls(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        prefix = "data." if error.title == cls.payload_model.__name__ else ""
        raise InvalidEventError(first["msg"], field=prefix + path) from None
