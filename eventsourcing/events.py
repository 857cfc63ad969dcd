"""Events: drafts that callers make, the records that a store returns, and the registry of their types.

A `BaseEvent` is a validated draft with exactly the published fields. A store turns it into a frozen
`RecordedEvent`, which adds the place in the global order. One declaration makes an event type: a class
with its type, its aggregate and its payload; topics, schemas and checks derive from it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeVar
from uuid import UUID

import uuid_utils.compat
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from eventsourcing.canonical import decode, encode, utc
from eventsourcing.errors import InvalidEventError
from eventsourcing.upcasting import (
    SCHEMA_VERSION,
    VERSIONED,
    Lineage,
    read_newest,
    register_lineage,
    write_newest,
)

RESERVED_METADATA = frozenset({"traceparent", "dagster_run_id", "backfilled", "schema_version", "region"})
"""Keys of `metadata` that belong to the system; everything else in it is the caller's."""

MAX_EVENT_BYTES = 768 * 1024
"""The largest event, payload and metadata encoded together."""


class EventType(StrEnum):
    """The types of our own events. Teams register theirs beside them under their own strings."""

    MIGRATION_STARTED = "migration.started"
    MIGRATION_COMPLETED = "migration.completed"
    MIGRATION_FAILED = "migration.failed"
    DATA_EXTRACTED = "data.extracted"
    DATA_TRANSFORMED = "data.transformed"
    DATA_VALIDATED = "data.validated"
    DATA_IMPORTED = "data.imported"
    USER_MIGRATED = "user.migrated"
    ADMIN_MIGRATED = "admin.migrated"
    ROLLBACK_INITIATED = "rollback.initiated"
    ROLLBACK_COMPLETED = "rollback.completed"
    SCHEMA_COMPATIBILITY_CHECKED = "schema.compatibility.checked"
    UUID_TRANSFORMED = "uuid.transformed"
    DATETIME_CONVERTED = "datetime.converted"
    RECORD_QUARANTINED = "record.quarantined"
    RECORD_RELEASED = "record.released"
    USER_ROLLED_BACK = "user.rolled_back"
    ADMIN_ROLLED_BACK = "admin.rolled_back"
    CUTOVER_CHANGED = "cutover.changed"


_TYPE_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def _known_type(value: str) -> str:
    if not _TYPE_PATTERN.fullmatch(value):
        raise ValueError(
            "an event type is 1 to 128 of a-z, 0-9, '.', '_', '-', starting with a letter or digit"
        )
    try:
        return EventType(value)
    except ValueError:
        return value


def _no_control(value: str) -> str:
    if _CONTROL.search(value):
        raise ValueError("must not contain control characters")
    return value


EventTypeName = Annotated[str, AfterValidator(_known_type)]
"""A well-formed event type; one of ours becomes its `EventType` member."""

Identifier = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_no_control)]
"""1 to 255 characters without control characters."""

UtcDatetime = Annotated[datetime, AfterValidator(utc)]
"""A moment, kept in UTC; a naive one is taken as UTC."""


def new_event_id() -> UUID:
    """A time-ordered random id (UUIDv7): random ids make the unique index the bottleneck."""
    return uuid_utils.compat.uuid7()


def deterministic_event_id(started_at: datetime, *parts: str) -> UUID:
    """The same id for the same parts: a UUIDv8 of the run's start and a hash (RFC 9562, 5.8).

    Ids of one run lie together in an index, and a repeated run appends nothing twice.
    """
    return _hashed(int(utc(started_at).timestamp() * 1000) & (2**48 - 1), "\x1f".join(parts))


def derived_event_id(token: UUID, number: int) -> UUID:
    """The id of the event with this number among those of one token, whose time it takes over."""
    return _hashed(token.int >> 80, f"{token.int:x}\x1f{number}")


def named_token(*names: str) -> UUID:
    """The same token for the same names, for ever."""
    return _hashed(0, "\x1f".join(names))


def _hashed(milliseconds: int, text: str) -> UUID:
    """A UUIDv8 of a time and a hash (RFC 9562, 5.8)."""
    value = (milliseconds << 80) | int.from_bytes(hashlib.sha256(text.encode()).digest()[:10])
    value = (value & ~(0xF << 76)) | (0x8 << 76)
    return UUID(int=(value & ~(0x3 << 62)) | (0x2 << 62))


class BaseEvent(BaseModel):
    """Something that happened, as its author states it: a draft until a store records it.

    `event_version` 0 lets the store assign the aggregate's next version; another number must be
    exactly the next one. `timestamp` is when it happened and may lie in the past.
    """

    model_config = ConfigDict(validate_assignment=True, extra="forbid", hide_input_in_errors=True)

    event_id: UUID = Field(default_factory=new_event_id)
    event_type: EventTypeName
    aggregate_id: Identifier
    aggregate_type: Identifier
    event_version: int = Field(default=0, ge=0, lt=2**31)
    timestamp: UtcDatetime = Field(default_factory=lambda: datetime.now(UTC))
    correlation_id: UUID | None = None
    causation_id: UUID | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    data: dict[str, Any] = Field(default_factory=dict)

    def follow(self, parent: BaseEvent) -> Self:
        """Take the parent's correlation (its event_id where it has none) and name it as the cause."""
        self.correlation_id = parent.correlation_id or parent.event_id
        self.causation_id = parent.event_id
        return self

    @property
    def defaulted_payload(self) -> frozenset[str]:
        """Payload fields that the caller left to their default: they follow the timestamp."""
        return frozenset()


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
        _set_names(event, _RECORDED_FIELDS)
        _set_extra(event, None)
        _set_private(event, None)
        return event

    @classmethod
    def from_row(cls, row: Sequence[Any], *, as_stored: bool = False) -> RecordedEvent:
        """Wrap a row that the store wrote: all fields in order, the payloads encoded. See from_store."""
        event = _new(cls)
        _set_row(event, row)
        _set_names(event, _RECORDED_FIELDS)
        _set_extra(event, None)
        _set_private(event, None)
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
            _set_fields(self, fields)

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
        row = None if event is None else event._row
        if row is None:
            raise AttributeError(self._name)  # no class has a field; nor has a record that was built without
        make = self._make
        if make is None:
            return row[self._place]
        value = make(row[self._place])
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

_DRAFT_FIELDS = frozenset(BaseEvent.model_fields)  # looking them up in the class costs more than the rest
_RECORDED_FIELDS = set(_FIELDS)
_TYPE, _METADATA = list(_FIELDS).index("event_type"), list(_FIELDS).index("metadata")
_NAMES_VERSION = f'"{SCHEMA_VERSION}"'.encode()
_new = object.__new__  # a record is made for every row read, and these ways cost least
_get_fields, _set_fields = vars(BaseModel)["__dict__"].__get__, vars(BaseModel)["__dict__"].__set__
_set_row = vars(RecordedEvent)["_row"].__set__
_set_names, _set_extra, _set_private = (
    vars(BaseModel)[f"__pydantic_{name}__"].__set__ for name in ("fields_set", "extra", "private")
)


class EventPayload(BaseModel):
    """The payload of a typed event: extra keys are kept, and a field `…_at = OCCURRED` that is left
    out takes the event's timestamp."""

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)


OCCURRED: Any = Field(default=None, description="Defaults to the event's timestamp.")


class TypedEvent(BaseEvent):
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
        cls.declared_type = _known_type(event_type)
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
        data, defaulted = complete_payload(type(self), given, self.timestamp)
        self.__dict__["data"] = data
        self.__pydantic_fields_set__.add("data")
        self._defaulted = defaulted

    @classmethod
    def of_valid(cls, fields: Mapping[str, Any]) -> Self:
        """The event of fields that are valid already, as an HTTP body's are; only the payload is checked.

        Raises what the constructor raises for the payload.
        """
        own = {"event_version": 0, "correlation_id": None, "causation_id": None, **fields}
        if "event_id" not in own:
            own["event_id"] = new_event_id()
        if "timestamp" not in own:
            own["timestamp"] = datetime.now(UTC)
        own["metadata"] = dict(fields.get("metadata", ()))
        own["data"], defaulted = complete_payload(cls, fields["data"], own["timestamp"])
        event = _new(cls)
        _set_fields(event, own)
        _set_names(event, set(fields))
        _set_extra(event, None)
        _set_private(event, {"_defaulted": defaulted})
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


def complete_payload(
    cls: type[TypedEvent], given: Mapping[str, Any], timestamp: datetime
) -> tuple[dict[str, Any], frozenset[str]]:
    """Validate a payload against its declaration: the canonical payload, and the fields defaulted.

    Raises pydantic's ValidationError naming the payload's fields, or InvalidEventError.
    """
    model = cls.payload_model
    defaulted = frozenset([name for name in _following(model) if given.get(name) is None])
    payload = model.model_validate({**given, **dict.fromkeys(defaulted, timestamp)})
    extra = payload.__pydantic_extra__ or {}
    canonical: dict[str, Any] = decode(encode({**payload.__dict__, **extra}))
    return canonical, defaulted


@cache
def _following(model: type[BaseModel]) -> tuple[str, ...]:
    """The fields of a payload that take the event's timestamp when they are left out."""
    fields = model.model_fields.items()
    return tuple(name for name, field in fields if name.endswith("_at") and not field.is_required())


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
