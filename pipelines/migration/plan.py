"""The plan: a mapping compiled against the reflected tables, ready to run over frames.

Frames pass from stage to stage with three sorts of columns: `_key` (the source key as text), `_record`
(the key in the target), `s:name` (a source column, untouched) and `t:name` (a target column).
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from pipelines.migration.mapping import EntityMapping, Mapping, Policy
from pipelines.migration.rules import Bounds, broken_mask, rule_message
from pipelines.migration.schema import Column, Table, Unique
from pipelines.migration.transforms import (
    ChildFunction,
    Conversion,
    Settings,
)

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Check:
    """What can be wrong with a column: `broken` is true for the rows that are."""

    rule: str
    column: str
    message: str
    broken: pl.Expr


@dataclass(frozen=True)
class FieldPlan:
    """One target column: its value over source columns, and where that could not be made."""

    column: Column
    value: pl.Expr
    sources: tuple[str, ...]
    failures: tuple[Check, ...]
    conversions: tuple[tuple[Conversion, pl.Expr], ...]
    checks: tuple[Check, ...]
    place: Place
    ref: str | None = None
    on_missing: str = "quarantine"
    secret: bool = False


@dataclass(frozen=True)
class ChildPlan:
    """The children of a record: the function that makes them, and the table they go to."""

    name: str
    table: Table
    parent: str
    sources: tuple[str, ...]
    make: ChildFunction
    conversions: tuple[Conversion, ...]
    checks: tuple[Check, ...]
    secret: frozenset[str]
    place: Place

    def made_columns(self, source: Table, key: Column, settings: Settings) -> list[str]:
        """The columns that the function fills, as it shows on no rows at all."""
        columns = [source.columns[name] for name in self.sources]
        return made_columns(self.make, columns, key, settings)

    def target_checks(self, frame_columns: list[str]) -> list[Check]:
        """What the target's columns demand of the children in a frame."""
        names = [name[2:] for name in frame_columns if name.startswith("t:")]
        columns = [self.table.columns[name] for name in names]
        return [check for column in columns for check in target_checks(column, {}, self.table.key)]


@dataclass(frozen=True)
class EntityPlan:
    """One entity: its tables, the source columns it reads, its fields, checks and children."""

    name: str
    mapping: EntityMapping
    source: Table
    target: Table
    columns: tuple[str, ...]
    where: pl.Expr | None
    fields: dict[str, FieldPlan]
    children: dict[str, ChildPlan]
    unique: tuple[Unique, ...]
    secret_sources: frozenset[str]
    place: Place
    policy: Policy = "fail"

    @property
    def target_key(self) -> str:
        """The target's primary key column."""
        assert self.target.key is not None
        return self.target.key

    @property
    def loaded_columns(self) -> list[str]:
        """The target columns that the load fills, the key among them."""
        return [*{*self.fields, self.target_key}]

    def child_columns(self, child: ChildPlan, settings: Settings) -> list[str]:
        """The columns of a child's table that the load fills, the key among them."""
        assert child.table.key is not None
        made = child.made_columns(self.source, self.target.columns[self.target_key], settings)
        return [*{*made, child.parent, child.table.key}]


@dataclass(frozen=True)
class Plan:
    """Everything that a run does, in the order of loading."""

    mapping: Mapping
    entities: dict[str, EntityPlan]
    settings: Settings
    source_tables: Dict[str, Table] = field(default_factory=dict)


def made_columns(make: ChildFunction, sources: list[Column], key: Column, settings: Settings) -> list[str]:
    """The columns that a function makes of these. Raises ValueError when it cannot work with them."""
    schema = {column.name: column.dtype for column in sources}
    made = make(pl.DataFrame(schema={"_record": key.dtype, **schema}), settings)
    return [name for name in made.columns if name != "_record"]


def rule_checks(column: str, frame_column: str, rules: list[Any]) -> tuple[Check, ...]:
    """The checks of a column's rules, row by row; `unique` looks at all rows and is none of them."""
    value = pl.col(frame_column)
    return tuple(
        Check(name, column, rule_message(name, argument), broken_mask(name, argument, value))
        for name, argument in rules
        if name != "unique"
    )


def target_checks(column: Column, stated: Dict[str, Any], key: str | None) -> tuple[Check, ...]:
    """The rules that the target's own column imposes, unless the mapping states as much itself."""
    rules: list[tuple[str, Any]] = []
    if (not column.nullable or column.name == key) and "required" not in stated:
        rules.append(("required", None))
    if column.max_length and stated.get("max_length", column.max_length + 1) > column.max_length:
        rules.append(("max_length", column.max_length))
    if column.bounds:
        rules.append(("range", Bounds(min=column.bounds[0], max=column.bounds[1])))
    if column.values is not None:
        rules.append(("in", list(column.values)))
    return rule_checks(column.name, f"t:{column.name}", rules) + _nul_check(column)


def _nul_check(column: Column) -> tuple[Check, ...]:
    if column.dtype != pl.String():
        return ()
    return rule_checks(column.name, f"t:{column.name}", [("no_nul", None)])
