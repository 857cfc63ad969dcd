"""Assemble the SQL of an EventQuery from one fixed table of fragments; values are always parameters.

One static query with `$n IS NULL OR …` would be simpler and a thousand times slower: its generic plan
uses no index (270 ms against 0.2 ms). Several event types are one ordered branch each: only so does the
server merge ranges of one index and stop at the page's end.
"""

from __future__ import annotations

from typing import Any

from eventsourcing.query import EventQuery
from eventsourcing.storage.statements import statements
from eventsourcing.storage.time_blocks import BLOCK

CONDITIONS = {
    "aggregate_id": "aggregate_id = ${}",
    "event_id": "event_id = ${}",
    "aggregate_types": "aggregate_type = ANY(${}::text[])",
    "correlation_id": "correlation_id = ${}",
    "from_timestamp": '"timestamp" >= ${}',
    "to_timestamp": '"timestamp" <= ${}',
    "from_version": "event_version >= ${}::bigint",
    "to_version": "event_version <= ${}::bigint",
    "after_position": "position > ${}",
    "to_position": "position <= ${}",
}
"""Field of the query -> condition. `{}` is the number of the parameter."""

ANY_TYPE = "event_type = ANY(${}::text[])"
ONE_TYPE = "event_type = ${}"
BRANCHES_AT_MOST = 64
"""Above this many types a page is filtered along the positions instead."""

_SELECT = statements("events")["select_events"]


def page(query: EventQuery, *, cursor: int | None, size: int, select: str = _SELECT) -> tuple[str, list[Any]]:
    """One page of the query beyond `cursor` (of `keyset_column`), and its parameters."""
    conditions: list[str] = []
    values: list[Any] = []

    def condition(fragment: str, value: Any) -> str:
        values.append([str(item) for item in value] if isinstance(value, tuple) else value)
        return fragment.format(len(values))

    for field, fragment in CONDITIONS.items():
        value = getattr(query, field)
        if value is not None and value != ():
            conditions.append(condition(fragment, value))
    column = keyset_column(query)
    if cursor is not None:
        conditions.append(condition(f"{column} {'<' if query.backwards else '>'} ${{}}", cursor))
    order = "" if query.event_id is not None else f" ORDER BY {column}{' DESC' if query.backwards else ''}"
    types = tuple(dict.fromkeys(map(str, query.event_types)))
    if types and (has_index_of_its_own(query) or len(types) > BRANCHES_AT_MOST):
        conditions.append(condition(ANY_TYPE, types))
        types = ()
    branches = [[*conditions, condition(ONE_TYPE, name)] for name in types] or [conditions]
    ordered = [select + (f" WHERE {' AND '.join(branch)}" if branch else "") + order for branch in branches]
    merged = f"({') UNION ALL ('.join(ordered)}){order}" if len(ordered) > 1 else ordered[0]
    return f"{merged} {condition('LIMIT ${}', size)}", values


def keyset_column(query: EventQuery) -> str:
    """What pages are keyed by: a stream is read along its own index, and version order is position order."""
    return "event_version" if query.aggregate_id is not None else "position"


def is_timed(query: EventQuery) -> bool:
    """Whether the query is a window of time, and not small by its positions."""
    first, last = query.after_position or 0, query.to_position
    timed = query.from_timestamp is not None or query.to_timestamp is not None
    return timed and (last is None or last - first > BLOCK)


def has_index_of_its_own(query: EventQuery) -> bool:
    """Whether a narrower condition than the types leads the way."""
    return query.aggregate_id is not None or query.event_id is not None or query.correlation_id is not None
