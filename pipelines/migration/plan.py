"""The plan: a mapping compiled against the reflected tables, ready to run over frames.

Frames pass from stage to stage with three sorts of columns: `_key` (the source key as text), `_record`
(the key in the target, as `keys.key_value` gives it), `s:name` (a source column, untouched) and `t:name`
(a target column).
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping as Dict
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from pipelines.migration.keys import key_dtype, listed
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
    ref_column: str = ""
    """Which column of the key of the record referred to."""
    on_missing: str = "quarantine"
    secret: bool = False


@dataclass(frozen=True)
class ChildPlan:
    """The children of a record: the function that makes them, and the table they go to.

    Their key is given, when the function and the record fill all of its columns, or counted up.
    """

    name: str
    table: Table
    parent: tuple[str, ...]
    sources: tuple[str, ...]
    make: ChildFunction
    conversions: tuple[Conversion, ...]
    checks: tuple[Check, ...]
    secret: frozenset[str]
    place: Place

    def made_columns(self, source: Table, record: pl.DataType, settings: Settings) -> list[str]:
        """The columns that the function fills, as it shows on no rows at all."""
        return made_columns(self.make, source.pick(self.sources), record, settings)

    def has_given_key(self, made: Iterable[str]) -> bool:
        """Whether the columns made and those of the record fill the whole key."""
        return {*self.table.key} <= {*made, *self.parent}

    def target_checks(self, frame_columns: list[str]) -> list[Check]:
        """What the target's columns demand of the children in a frame."""
        names = [name[2:] for name in frame_columns if name.startswith("t:")]
        columns = self.table.pick(names)
        checks = [check for column in columns for check in target_checks(column, {}, self.table.key)]
        if not self.has_given_key(names):
            return checks
        own = ["_record"] if {*self.parent} & {*self.table.key} else []
        parts = own + [f"t:{name}" for name in self.table.key if name not in self.parent]
        message, twice = rule_message("unique", None), pl.struct(parts).is_duplicated()
        return [*checks, Check("unique", listed(self.table.key), message, twice)]


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
    def source_key(self) -> list[Column]:
        """The columns that tell the source's rows apart."""
        return self.source.pick(self.mapping.key)

    @property
    def target_key(self) -> list[Column]:
        """The target's primary key."""
        return self.target.key_columns

    @property
    def record_dtype(self) -> pl.DataType:
        """The type of `_record`."""
        return key_dtype(self.target_key)

    @property
    def has_referring_key(self) -> bool:
        """Whether a key is known only when its references are: in the validate stage."""
        return any(name in self.fields and self.fields[name].ref for name in self.target.key)

    @property
    def is_matched_late(self) -> bool:
        """Whether what a record is matched by is known only then."""
        return self.has_referring_key or any(self.fields[name].ref for name in self.mapping.natural_key)

    @property
    def loaded_columns(self) -> list[str]:
        """The target columns that the load fills, the key among them."""
        return [*{*self.fields, *self.target.key}]

    def child_columns(self, child: ChildPlan, settings: Settings) -> list[str]:
        """The columns of a child's table that the load fills, the key among them."""
        made = child.made_columns(self.source, self.record_dtype, settings)
        return [*{*made, *child.parent, *child.table.key}]


@dataclass(frozen=True)
class Plan:
    """Everything that a run does, in the order of loading."""

    mapping: Mapping
    entities: dict[str, EntityPlan]
    settings: Settings
    source_tables: Dict[str, Table] = field(default_factory=dict)


def made_columns(
    make: ChildFunction, sources: list[Column], record: pl.DataType, settings: Settings
) -> list[str]:
    """The columns that a function makes of these. Raises ValueError when it cannot work with them."""
    schema = {column.name: column.dtype for column in sources}
    made = make(pl.DataFrame(schema={"_record": record, **schema}), settings)
    return [name for name in made.columns if name != "_record"]


def rule_checks(column: str, frame_column: str, rules: list[Any]) -> tuple[Check, ...]:
    """The checks of a column's rules, row by row; `unique` looks at all rows and is none of them."""
    value = pl.col(frame_column)
    return tuple(
        Check(name, column, rule_message(name, argument), broken_mask(name, argument, value))
        for name, argument in rules
        if name != "unique"
    )


def target_checks(column: Column, stated: Dict[str, Any], key: tuple[str, ...]) -> tuple[Check, ...]:
    """The rules that the target's own column imposes, unless the mapping states as much itself."""
    rules: list[tuple[str, Any]] = []
    if (not column.nullable or column.name in key) and "required" not in stated:
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
