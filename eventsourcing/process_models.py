"""Process models: which events may follow each other in a process, declared and checked.

A process is built of event types by `sequence`, `either`, `optional`, `repeated` and `stages`. A model
gives it a name and says whose events it speaks of. Teams register theirs in a plugin:

    register_process(ProcessModel("order", sequence("order.placed", within("order.paid", days=3)),
                                  aggregate_types=("order",)))
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

from eventsourcing.catalogue import MIGRATION_SEQUENCE
from eventsourcing.errors import NotFoundError
from eventsourcing.events import EventType


@dataclass(frozen=True, slots=True)
class Step:
    """One event. `within` bounds the time since the event before it, by their timestamps."""

    event_type: str
    within: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Sequence:
    """All parts, in order."""

    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """One of the parts."""

    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Repeated:
    """A part as often as it likes, but `at_least` so often and `at_most` so often, when that is given."""

    part: Part
    at_least: int = 1
    at_most: int | None = None


@dataclass(frozen=True, slots=True)
class Stages:
    """Parts in order, between any two of which, and at both ends, something else may happen.

    After `interrupted_by` the process goes on where it was; after `taken_back_by` there or at any stage
    before; after `given_up_by` it is over.
    """

    parts: tuple[Part, ...]
    interrupted_by: Part | None = None
    taken_back_by: Part | None = None
    given_up_by: Part | None = None


Part = Step | Sequence | Either | Repeated | Stages


def within(event_type: str, **limit: float) -> Step:
    """An event at most so long after the one before it: `within("order.paid", days=3)`."""
    return Step(str(event_type), timedelta(**limit))


def sequence(*parts: str | Part) -> Sequence:
    """All parts, in order; a plain text is an event type, here and in all that follow."""
    return Sequence(_parts(parts))


def either(*parts: str | Part) -> Either:
    """One of the parts."""
    return Either(_parts(parts))


def optional(part: str | Part) -> Repeated:
    """A part, or nothing."""
    return Repeated(_part(part), 0, 1)


def repeated(part: str | Part, *, at_least: int = 1, at_most: int | None = None) -> Repeated:
    """A part again and again."""
    return Repeated(_part(part), at_least, at_most)


def stages(
    *parts: str | Part,
    interrupted_by: str | Part | None = None,
    taken_back_by: str | Part | None = None,
    given_up_by: str | Part | None = None,
) -> Stages:
    """See Stages."""
    branches = (interrupted_by, taken_back_by, given_up_by)
    return Stages(_parts(parts), *(None if branch is None else _part(branch) for branch in branches))


def _parts(parts: tuple[str | Part, ...]) -> tuple[Part, ...]:
    return tuple(map(_part, parts))


def _part(part: str | Part) -> Part:
    return Step(str(part)) if isinstance(part, str) else part


@dataclass(frozen=True)
class ProcessModel:
    """A process and whose it is.

    A subject is a stream with an event of one of `aggregate_types`, read together with its
    `side_streams`: `schema` is the stream `{id}:schema`, `rollback-{n}` those numbered from 1. Their other
    events have the aggregate types `beside`. An event of the types `ignored` may come at any time; any
    other that the process does not name breaks it. `limit` bounds the time from first to last event.
    """

    name: str
    process: Part
    aggregate_types: tuple[str, ...]
    beside: tuple[str, ...] = ()
    side_streams: tuple[str, ...] = ()
    ignored: frozenset[str] = frozenset()
    limit: timedelta | None = None
    description: str = ""
    live: bool = True
    """Whether the sensor of broken processes follows it."""

    def subject_of(self, aggregate_id: str) -> str:
        """The subject to which a stream belongs."""
        found = self._side.fullmatch(aggregate_id) if self.side_streams else None
        return found[1] if found else aggregate_id

    @cached_property
    def _side(self) -> re.Pattern[str]:
        names = "|".join(re.escape(name).replace(r"\{n\}", r"[1-9]\d*") for name in self.side_streams)
        return re.compile(f"(.+):(?:{names})", re.DOTALL)


_models: dict[str, ProcessModel] = {}


def register_process(model: ProcessModel) -> ProcessModel:
    """Have a model checked by name and watched live. Registering a name again replaces the model."""
    _models[model.name] = model
    return model


def process_models() -> list[ProcessModel]:
    """All models, by name."""
    return [_models[name] for name in sorted(_models)]


def process_model(name: str) -> ProcessModel:
    """The model of a name. Raises NotFoundError."""
    if name not in _models:
        raise NotFoundError("process model", name)
    return _models[name]


_STAGE_TYPES = ("extraction", "transformation", "validation", "import")

STRAIGHT = register_process(
    ProcessModel(
        "straight-migration",
        sequence(*MIGRATION_SEQUENCE),
        aggregate_types=("migration",),
        beside=_STAGE_TYPES,
        description="The six stages of a migration that went well at once.",
        live=False,  # to fail and go on is no fault
    )
)
"""The sequence of the stages, and nothing else in the stream."""

MIGRATION = register_process(
    ProcessModel(
        "migration",
        sequence(
            EventType.MIGRATION_STARTED,
            stages(
                optional(EventType.SCHEMA_COMPATIBILITY_CHECKED),
                EventType.DATA_EXTRACTED,
                repeated(either(EventType.UUID_TRANSFORMED, EventType.DATETIME_CONVERTED), at_least=0),
                EventType.DATA_TRANSFORMED,
                EventType.DATA_VALIDATED,
                EventType.DATA_IMPORTED,
                EventType.MIGRATION_COMPLETED,
                interrupted_by=EventType.MIGRATION_FAILED,
                taken_back_by=sequence(EventType.ROLLBACK_INITIATED, EventType.ROLLBACK_COMPLETED),
                given_up_by=repeated(sequence(EventType.ROLLBACK_INITIATED, EventType.ROLLBACK_COMPLETED)),
            ),
        ),
        aggregate_types=("migration",),
        beside=(*_STAGE_TYPES, "schema", "uuid_transformation", "datetime_conversion", "rollback"),
        side_streams=("schema", "uuid", "datetime", "rollback-{n}"),
        description="A migration's whole life: stages, failures and resumptions, rollbacks.",
    )
)
"""What a migration of the engine may do, failures and rollbacks included."""
