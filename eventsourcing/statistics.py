"""The statistics of migrations: one pure fold into parts, and the merge of parts into an answer.

A part belongs to (subject, correlation_id). The subject is the payload's `migration_id`, else the
aggregate_id of an event that is not about one record, else nothing: each event falls into exactly one
part, and a million user events never update one row. The statistics of a migration merge the parts
whose subject is its id and those whose correlation is the correlation_id or the event_id of its
started event; so events may arrive before it (contract, section 3).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from eventsourcing.events import BaseEvent, EventType
from eventsourcing.folds import Counted, State, position_of

SEPARATOR = "\x1f"
"""Between subject and correlation in a part's key; no identifier can contain it."""

_COUNTS: dict[str, tuple[str, str | None]] = {
    EventType.DATA_EXTRACTED: ("extracted_count", "record_count"),
    EventType.DATA_TRANSFORMED: ("transformed_count", "output_count"),
    EventType.DATA_VALIDATED: ("validated_count", "valid_records"),
    EventType.DATA_IMPORTED: ("imported_count", "imported_count"),
    EventType.USER_MIGRATED: ("user_count", None),
    EventType.ADMIN_MIGRATED: ("admin_count", None),
    EventType.USER_ROLLED_BACK: ("rolled_back_count", None),
    EventType.ADMIN_ROLLED_BACK: ("rolled_back_count", None),
}
"""Type -> the count it adds to, and the payload field that says how much (None: one)."""

_FIELDS: dict[str, dict[str, str]] = {
    EventType.MIGRATION_STARTED: {
        "started_at": "started_at",
        "source_config": "source_config",
        "target_config": "target_config",
    },
    EventType.MIGRATION_COMPLETED: {
        "completed_at": "completed_at",
        "duration_seconds": "duration_seconds",
        "final_statistics": "statistics",
    },
    EventType.MIGRATION_FAILED: {
        "failed_at": "failed_at",
        "error_message": "error_message",
        "error_details": "error_details",
    },
}
"""Type -> the answer's fields, and the payload fields they come from."""

_STATUS = {
    EventType.MIGRATION_STARTED: "started",
    EventType.MIGRATION_COMPLETED: "completed",
    EventType.MIGRATION_FAILED: "failed",
    EventType.ROLLBACK_COMPLETED: "rolled_back",
}

_RECORD_TYPES = {
    EventType.USER_MIGRATED,
    EventType.ADMIN_MIGRATED,
    EventType.USER_ROLLED_BACK,
    EventType.ADMIN_ROLLED_BACK,
}

_RELEVANT = {*_COUNTS, *_FIELDS, *_STATUS, EventType.ROLLBACK_INITIATED}

_LARGEST_COUNT = 2**53 - 1
_LONGEST_ID = 255

COUNT_NAMES = list(dict.fromkeys(name for name, _ in _COUNTS.values()))


class MigrationStatisticsFold:
    """Events into parts. A part is {subject, correlation, counts, fields, errors, links}."""

    name = "migration-statistics"
    version = 1
    types: frozenset[str] | None = frozenset(_RELEVANT)
    counted: Counted | None = Counted(frozenset(_RECORD_TYPES), field="migration_id")

    def key(self, event: BaseEvent) -> str | None:
        if event.event_type not in _RELEVANT:
            return None
        return f"{_subject(event)}{SEPARATOR}{event.correlation_id or ''}"

    def initial(self) -> State:
        return {"counts": {}, "fields": {}, "errors": [], "links": []}

    def apply(self, state: State, event: BaseEvent, times: int = 1) -> None:
        data, position = event.data, position_of(event)
        if event.event_type in _COUNTS:
            name, source = _COUNTS[event.event_type]
            amount = times if source is None else data.get(source)
            state["counts"][name] = _sum((state["counts"].get(name, 0), amount))
        for name, source in _FIELDS.get(event.event_type, {}).items():
            _set(state, name, position, data.get(source))
        if event.event_type in _STATUS and data.get("success", True) is not False:
            _set(state, "status", position, _STATUS[EventType(event.event_type)])
        if event.event_type == EventType.MIGRATION_STARTED:
            state["links"].append(str(event.event_id))
            if event.correlation_id is not None:
                state["links"].append(str(event.correlation_id))
        elif event.event_type == EventType.MIGRATION_FAILED:
            error = {name: data.get(name) for name in ("error_message", "failed_at")}
            state["errors"] = sorted([*state["errors"], [position, error]], key=lambda entry: entry[0])
        elif event.event_type == EventType.ROLLBACK_INITIATED:
            _set(state, "rollback_initiated", position, _rollback(event, "reason", "initiated_at"))
        elif event.event_type == EventType.ROLLBACK_COMPLETED:
            fields = _rollback(event, "success", "completed_at", "rollback_stats")
            _set(state, "rollback_completed", position, fields)


MIGRATION_STATISTICS = MigrationStatisticsFold()


def split_key(key: str) -> tuple[str, str]:
    """The subject and the correlation of a part's key; either may be empty."""
    subject, _, correlation = key.partition(SEPARATOR)
    return subject, correlation


def links(parts: Iterable[State]) -> set[str]:
    """The correlations whose parts belong to the migration of these parts."""
    return {link for part in parts for link in part["links"]}


def is_migration(parts: Iterable[State]) -> bool:
    """Whether parts of one subject are a migration's: anything said when it began, ended or was undone."""
    return any(part["fields"] for part in parts)


def merge(parts: Iterable[State]) -> dict[str, Any]:
    """One migration's statistics from its parts; {} from none."""
    parts = list(parts)
    if not parts:
        return {}
    fields: dict[str, list[Any]] = {}
    for part in parts:
        for name, entry in part["fields"].items():
            if name not in fields or entry[0] >= fields[name][0]:
                fields[name] = entry
    counts = {name: _sum(part["counts"].get(name) for part in parts) for name in COUNT_NAMES}
    errors = sorted((entry for part in parts for entry in part["errors"]), key=lambda entry: entry[0])
    always = {"status": None, "started_at": None, "source_config": None, "target_config": None}
    return {
        **always,
        **counts,
        "errors": [error for _, error in errors],
        **{name: value for name, (_, value) in fields.items()},
    }


def _subject(event: BaseEvent) -> str:
    named = event.data.get("migration_id")
    if isinstance(named, str) and 0 < len(named) <= _LONGEST_ID and SEPARATOR not in named:
        return named
    return "" if event.event_type in _RECORD_TYPES else event.aggregate_id


def _sum(amounts: Iterable[Any]) -> int:
    """The sum of what are counts; it stops at the largest integer that every JSON reader keeps exactly.

    Payloads are what their authors made them: none of them may stop a read model for ever.
    """
    return min(sum(n for n in amounts if type(n) is int and n > 0), _LARGEST_COUNT)


def _set(state: State, name: str, position: int, value: Any) -> None:
    known = state["fields"].get(name)
    if known is None or position >= known[0]:
        state["fields"][name] = [position, value]


def _rollback(event: BaseEvent, *names: str) -> dict[str, Any]:
    return {"rollback_id": event.aggregate_id, **{name: event.data.get(name) for name in names}}
