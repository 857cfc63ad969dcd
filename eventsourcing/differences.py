"""Differences: which rows of two sets of states are not the same, counted exactly and kept up to a bound.

Both sets come in byte order of their keys and are merged as they come, so the memory is that of a page.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from eventsourcing.folds import State
from eventsourcing.storage.base import StateStorage, StateTable, StateTransaction, purge_all

DIFFERENCES = StateTable("differences")
"""Key: the subject of the comparison, separator, key of the row. Value: DifferingRow as plain values."""

KEPT = 10_000
"""How many rows one comparison keeps; it counts them all."""

PAGE = 1_000
"""How many rows are read at a time. Each may be as large as an event."""

_SEPARATOR = "\x1e"

Kind = Literal["changed", "only_old", "only_new"]
Rows = AsyncIterator[tuple[str, State]]


@dataclass(frozen=True, slots=True)
class DifferingRow:
    """One row that is not the same; `fields` are the names whose values differ, of a changed row."""

    key: str
    kind: Kind
    old: State | None
    new: State | None
    fields: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Difference:
    """What a comparison found, old against new, both complete up to `position`.

    Every row of either side is counted once. `kept` of the differing ones, the first by key, can be
    listed.
    """

    position: int
    same: int = 0
    changed: int = 0
    only_old: int = 0
    only_new: int = 0
    kept: int = 0

    @property
    def rows(self) -> int:
        """How many rows differ."""
        return self.changed + self.only_old + self.only_new

    def to_dict(self) -> dict[str, int]:
        """The numbers, with `rows`."""
        return {**asdict(self), "rows": self.rows}


async def compare(
    transaction: StateTransaction, subject: str, old: Rows, new: Rows, *, position: int
) -> Difference:
    """Compare two sets of rows, and keep the first differing ones under the subject, in the caller's
    transaction. What was kept under it before must have been forgotten."""
    counts = {"same": 0, "changed": 0, "only_old": 0, "only_new": 0}
    kept, batch = 0, {}
    async for row in _merged(old, new):
        counts["same" if row is None else row.kind] += 1
        if row is not None and kept < KEPT:
            kept += 1
            batch[f"{subject}{_SEPARATOR}{row.key}"] = asdict(row)
        if len(batch) == PAGE:
            await transaction.put_many(DIFFERENCES, batch)
            batch = {}
    if batch:
        await transaction.put_many(DIFFERENCES, batch)
    return Difference(position, **counts, kept=kept)


async def forget(storage: StateStorage, subject: str) -> None:
    """Remove the rows that were kept under a subject."""
    await purge_all(storage, DIFFERENCES, prefix=f"{subject}{_SEPARATOR}")


async def differing_rows(
    storage: StateStorage, subject: str, *, after: str | None = None, limit: int = 100
) -> list[DifferingRow]:
    """The next kept rows of a subject beyond the key `after`, by key."""
    prefix = f"{subject}{_SEPARATOR}"
    async with storage.transaction() as transaction:
        rows = await transaction.scan(
            DIFFERENCES, prefix=prefix, after=None if after is None else prefix + after, limit=limit
        )
    return [DifferingRow(**row) for _, row in rows]


async def rows_of(transaction: StateTransaction, table: StateTable) -> Rows:
    """All rows of a table, in byte order of their keys."""
    after: str | None = None
    while page := await transaction.scan(table, after=after, limit=PAGE):
        for key, state in page:
            yield key, state
        after = page[-1][0]


async def rows_in(states: Mapping[str, State]) -> Rows:
    """All rows of a mapping, in byte order of their keys."""
    for key in sorted(states, key=str.encode):
        yield key, states[key]


async def _merged(old: Rows, new: Rows) -> AsyncIterator[DifferingRow | None]:
    """One entry for each key of either side: None where both say the same."""
    mine, theirs = await anext(old, None), await anext(new, None)
    while mine is not None or theirs is not None:
        if theirs is None or (mine is not None and mine[0].encode() < theirs[0].encode()):
            assert mine is not None, "one side is left"
            yield DifferingRow(mine[0], "only_old", mine[1], None)
            mine = await anext(old, None)
        elif mine is None or theirs[0].encode() < mine[0].encode():
            yield DifferingRow(theirs[0], "only_new", None, theirs[1])
            theirs = await anext(new, None)
        else:
            yield None if mine[1] == theirs[1] else _changed(mine[0], mine[1], theirs[1])
            mine, theirs = await anext(old, None), await anext(new, None)


def _changed(key: str, old: State, new: State) -> DifferingRow:
    return DifferingRow(key, "changed", old, new, changed_fields(old, new))


def changed_fields(old: State, new: State) -> list[str]:
    """The names that only one state has, or whose values differ."""
    missing: Any = object()
    return sorted(name for name in {*old, *new} if old.get(name, missing) != new.get(name, missing))
