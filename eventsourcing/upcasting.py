"""Upcasting: an old payload reads as the newest one, and the stored bytes stay.

An event class declares its `schema_version` and, from every older version, a pure function to the next.
An append stamps the version into `metadata.schema_version`, where absent means 1; whatever is built
from stored fields has the newest payload and says so in the same place. A type at version 1 pays two
look-ups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from eventsourcing.canonical import decode, encode
from eventsourcing.errors import InvalidEventError, UpcastError

SCHEMA_VERSION = "schema_version"
"""The key of `metadata` that says which version the payload is; absent means 1."""

Payload = dict[str, Any]
Step = Callable[[Payload], Payload]

_MARK = "__upcasts_version__"


def upcast(version: int) -> Callable[[Step], staticmethod[[Payload], Payload]]:
    """Declare, inside an event class, how a payload of `version` becomes one of the next.

    The function gets a payload of its own, which it may change, and returns the new one. It is pure:
    the same payload in, the same payload out, without a clock, a random number or a look elsewhere.
    """

    def declare(function: Step) -> staticmethod[[Payload], Payload]:
        step = getattr(function, "__func__", function)  # @staticmethod beneath is fine
        setattr(step, _MARK, version)
        return staticmethod(step)

    return declare


@dataclass(frozen=True, slots=True)
class Lineage:
    """The versions of one type's payload: `steps[n - 1]` leads from version n to n + 1."""

    event_type: str
    steps: tuple[Step, ...]

    @property
    def newest(self) -> int:
        """The version that this code writes, and that everybody reads."""
        return len(self.steps) + 1

    @classmethod
    def of(cls, owner: type, event_type: str, newest: int) -> Lineage:
        """The lineage that a class declares. Raises ValueError unless every version has one way on."""
        members = {name: member for base in reversed(owner.__mro__) for name, member in vars(base).items()}
        functions = [member.__func__ for member in members.values() if isinstance(member, staticmethod)]
        declared = [(getattr(step, _MARK), step) for step in functions if hasattr(step, _MARK)]
        count = Counter(version for version, _ in declared)
        name = f"{owner.__name__} ({event_type})"
        if newest < 1:
            raise ValueError(f"{name}: schema_version is a whole number from 1")
        for version in range(1, newest):
            if count[version] != 1:
                raise ValueError(
                    f"{name} is at schema_version {newest} and has {count[version] or 'no'} "
                    f"@upcast({version}), the way from version {version} to {version + 1}"
                )
        if surplus := sorted(set(count) - set(range(1, newest))):
            raise ValueError(f"{name} is at schema_version {newest}: @upcast({surplus[0]}) leads beyond it")
        return cls(event_type, tuple(step for _, step in sorted(declared, key=lambda pair: pair[0])))

    def upcast(self, payload: Mapping[str, Any], version: int) -> Payload:
        """The newest form of a payload of an older version, in canonical JSON values.

        Raises ValueError naming the version whose function raised, or returned what is no payload.
        """
        newest: Payload = decode(encode(payload))
        for at, step in enumerate(self.steps[version - 1 :], start=version):
            try:
                newest = decode(encode(step(newest)))
            except Exception as error:  # its text may hold what the payload holds: it is the cause only
                raise ValueError(f"@upcast({at}) failed with {type(error).__name__}") from error
            if not isinstance(newest, dict):
                raise ValueError(f"@upcast({at}) returned {type(newest).__name__}, no payload")  # noqa: TRY004 - what a function made, not what it was given
        return newest


_lineages: dict[str, Lineage] = {}

VERSIONED: set[str] = set()
"""The registered types that have more than one version. Only their payloads, and those whose metadata
names a version, may need work: two look-ups that every event pays, written out where it is built."""


def register_lineage(lineage: Lineage) -> None:
    """Make a lineage the one of its type."""
    _lineages[lineage.event_type] = lineage
    (VERSIONED.add if lineage.steps else VERSIONED.discard)(lineage.event_type)


def read_newest(fields: dict[str, Any]) -> None:
    """Bring the fields of a stored event to the newest version of its payload, in place.

    A type that nobody registered here reads as it is. Raises UpcastError for a version that this code
    does not know, and for an upcast that fails.
    """
    lineage = _lineages.get(fields["event_type"])
    if lineage is None:
        return
    metadata = fields["metadata"]
    version = metadata.get(SCHEMA_VERSION, 1)
    if version == lineage.newest:
        return
    try:
        if not _is_version(version) or version > lineage.newest:
            raise ValueError(f"this code knows versions 1 to {lineage.newest}")
        fields["data"] = lineage.upcast(fields["data"], version)
    except ValueError as error:
        raise UpcastError(
            fields["event_id"],
            event_type=lineage.event_type,
            version=version,
            reason=str(error),
            fields=fields,
        ) from error
    fields["metadata"] = {**metadata, SCHEMA_VERSION: lineage.newest}


def write_newest(
    event_type: str, data: Mapping[str, Any], metadata: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The payload and the metadata to store: the newest version, and its number when it is above 1.

    A draft that names an older version is upcast; one that names none is of the newest. Raises
    InvalidEventError for a version that this code cannot write.
    """
    lineage = _lineages.get(event_type)
    newest = lineage.newest if lineage else None
    version = metadata.get(SCHEMA_VERSION, newest)
    if not _is_version(version) or (newest is not None and version > newest):
        known = f"1 to {newest}" if newest else "from 1"
        raise InvalidEventError(
            f"a version of {event_type} is a whole number {known}", field=f"metadata.{SCHEMA_VERSION}"
        )
    if lineage is None:
        return data, metadata
    if version < lineage.newest:
        try:
            data = lineage.upcast(data, version)
        except ValueError as error:
            raise InvalidEventError(str(error), field="data") from error
    return data, {**metadata, SCHEMA_VERSION: lineage.newest} if lineage.steps else metadata


def _is_version(value: Any) -> bool:
    return type(value) is int and value >= 1
