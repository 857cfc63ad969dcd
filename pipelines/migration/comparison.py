"""Comparison: an entity's tables as they are, against what was meant and against what the events tell.

Each row of the target is read once for both, and each event once, at the same time: one side waits for
the server while the other computes. Only what differs is read again.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import polars as pl

from pipelines.migration.buckets import Compared, Sums, compare_sums
from pipelines.migration.context import RunContext
from pipelines.migration.load import hashed_columns
from pipelines.migration.plan import ChildPlan, EntityPlan, Plan
from pipelines.migration.rowhash import row_hashes
from pipelines.migration.schema import Table
from pipelines.migration.target import TargetTransaction
from pipelines.migration.told import Telling, Told, table_of, told_columns
from pipelines.migration.worktables import written_to

FIRST = 100
"""How many differences of each kind a verification names; all are counted."""

PAGE = 20_000


@dataclass(frozen=True)
class Writes:
    """A table that the run writes: for which entity, which columns, and as whose child."""

    entity: EntityPlan
    table: Table
    columns: tuple[str, ...]
    child: ChildPlan | None = None


def tables_of(plan: Plan, entity: EntityPlan) -> Iterator[Writes]:
    """The tables of an entity, its own first."""
    yield Writes(entity, entity.target, tuple(hashed_columns(entity.loaded_columns)))
    for child in entity.children.values():
        names = hashed_columns(entity.child_columns(child, plan.settings))
        yield Writes(entity, child.table, tuple(names), child)


@dataclass(frozen=True)
class TableCompared:
    """One table: as it was meant, as the events tell it (None for an entity that emits none), and how
    many rows of others stand in it, of which nobody can tell whether they were there before."""

    rows: Compared
    events: Compared | None
    others: int


def compare_entity(
    run: RunContext, transaction: TargetTransaction, entity: EntityPlan, told: Told
) -> dict[str, TableCompared]:
    """Compare every table of an entity."""
    telling = Telling(run, entity, told) if entity.mapping.event is not None else None
    readings = [_Reading(run, transaction, item, telling) for item in tables_of(run.plan, entity)]
    with ThreadPoolExecutor(1, thread_name_prefix="told") as beside:
        sums_told = beside.submit(_sums_told, telling, readings) if telling is not None else None
        sums = [reading.sums() for reading in readings]
        of_events = [None for _ in readings] if sums_told is None else sums_told.result()
    return {
        reading.item.table.name: reading.compared(*found, events)
        for reading, found, events in zip(readings, sums, of_events, strict=True)
    }


def _sums_told(telling: Telling, readings: list[_Reading]) -> list[Sums]:
    """What the events tell of each table, read once."""
    sums = [Sums() for _ in readings]
    for payloads in telling.standing():
        for one, reading in zip(sums, readings, strict=True):
            child = reading.item.child
            one.add((telling.texts if reading.as_text else telling.values)(child, payloads))
    return sums


@dataclass(frozen=True)
class _Reading:
    """One table as it is read for both comparisons."""

    run: RunContext
    transaction: TargetTransaction
    item: Writes
    telling: Telling | None

    @cached_property
    def as_text(self) -> bool:
        return self.telling is not None and self.telling.has_same_text(self.item.child)

    def sums(self) -> tuple[Sums, Sums, Sums]:
        """Of the rows that were meant, of those that are there, and of these as events would tell them."""
        meant, found, seen = Sums.of(self.meant), Sums(), Sums()
        total, done = self.transaction.count(self.item.table), 0
        for page in self._pages():
            found.add(self._hashed(page))
            if self.telling is not None:
                told = self.telling.texts_of if self.as_text else self.telling.values_of
                seen.add(told(self.item.child, page))
            done += page.height
            self.run.progress("verify", self.item.table.name, done, max(total, done))
        return meant, found, seen

    def compared(self, meant: Sums, found: Sums, seen: Sums, told: Sums | None) -> TableCompared:
        """Read again what differs, and name it."""
        rows = compare_sums(meant, found, self.meant, self.found, first=FIRST)
        events = None
        if told is not None and self.telling is not None:
            events = compare_sums(told, seen, self.told, self.seen, first=FIRST)
        if self.item.entity.policy == "fail":
            return TableCompared(rows, events, 0)
        mine = rows.leave_out("extra")
        if not any(mine.counts.values()):
            mine.unequal = []
        return TableCompared(mine, events and events.leave_out("extra"), rows.counts["extra"])

    def meant(self) -> Iterator[pl.DataFrame]:
        connection, table = self.transaction.connection, self.item.table.name
        is_meant = pl.col("row_hash").is_not_null() & ~pl.col("op").is_in(["delete", "skip"])
        for frame in written_to(connection, self.run.migration_id, table):
            yield frame.filter(is_meant).select(key="target_key", hash="row_hash")

    def found(self) -> Iterator[pl.DataFrame]:
        return map(self._hashed, self._pages())

    def told(self) -> Iterator[pl.DataFrame]:
        assert self.telling is not None
        return (self.telling.values(self.item.child, payloads) for payloads in self.telling.standing())

    def seen(self) -> Iterator[pl.DataFrame]:
        assert self.telling is not None
        return (self.telling.values_of(self.item.child, page) for page in self._pages())

    def _hashed(self, page: pl.DataFrame) -> pl.DataFrame:
        table = self.item.table
        hashes = row_hashes(page, [table.columns[name] for name in self.item.columns])
        return pl.DataFrame([page[table.key or ""].cast(pl.String).alias("key"), hashes.alias("hash")])

    def _pages(self) -> Iterator[pl.DataFrame]:
        """All rows, a page at a time."""
        table, child = self.item.table, self.item.child
        _, owner = table_of(self.item.entity, child)
        told = told_columns(self.run, self.item.entity, child)
        names = sorted({*self.item.columns, owner, *(column.name for column in told)})
        return self.transaction.scan(table, names, rows=PAGE)
