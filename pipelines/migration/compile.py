"""Compile: a mapping against the tables that are there, into the plan that the stages follow.

What the mapping says fits them: `fitting` has refused everything else.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from datetime import datetime

import polars as pl

from pipelines.migration.fitting import referred_column, refuse_misfits
from pipelines.migration.keys import are_comparable, listed
from pipelines.migration.mapping import ChildMapping, FieldMapping, Mapping
from pipelines.migration.plan import (
    Check,
    ChildPlan,
    EntityPlan,
    FieldPlan,
    Place,
    Plan,
    rule_checks,
    target_checks,
)
from pipelines.migration.schema import Table, Unique
from pipelines.migration.transforms import Conversion, Settings, apply_transform, child_function


def tables_of(mapping: Mapping) -> tuple[set[str], set[str]]:
    """The names of the source and of the target tables that a mapping speaks of."""
    entities = mapping.entities.values()
    children = {child.to for entity in entities for child in entity.children.values()}
    return {entity.source for entity in entities}, {*(entity.to for entity in entities), *children}


def compile_plan(mapping: Mapping, source: Dict[str, Table], target: Dict[str, Table], now: datetime) -> Plan:
    """Compile a mapping against the tables that are there.

    Raises MappingError with every flaw of the mapping against them: see `fitting`.
    """
    settings = Settings(mapping.params, now)
    refuse_misfits(mapping, source, target, settings)
    entities = {
        name: _Compiler(mapping, name, settings).entity(source, target) for name in mapping.in_order()
    }
    return Plan(mapping, entities, settings, source)


class _Compiler:
    """Compiles one entity, and knows its place in the file."""

    def __init__(self, mapping: Mapping, name: str, settings: Settings) -> None:
        self.mapping, self.name, self.settings = mapping, name, settings
        self.spec = mapping.entities[name]
        self.policy = mapping.policy(name)
        self.place: Place = ("entities", name)

    def entity(self, sources: Dict[str, Table], targets: Dict[str, Table]) -> EntityPlan:
        spec, place = self.spec, self.place
        source, target = sources[spec.source], targets[spec.to]
        unique = self._unique(target)
        fields = {name: self._field(targets, unique, name) for name in spec.fields}
        children = {name: self._child(targets, name) for name in spec.children}
        where = None if spec.where is None else pl.sql_expr(spec.where)
        return EntityPlan(
            name=self.name,
            mapping=spec,
            source=source,
            target=target,
            columns=self._columns_read(where),
            where=where,
            fields=fields,
            children=children,
            unique=unique,
            secret_sources=spec.secret_sources,
            place=place,
            policy=self.policy,
        )

    def _field(self, targets: Dict[str, Table], unique: tuple[Unique, ...], name: str) -> FieldPlan:
        target, place = targets[self.spec.to], (*self.place, "fields", name)
        spec, column = self.spec.fields[name], target.columns[name]
        value, failures, conversions = self._value(name, spec)
        rules = spec.rules
        if name in self.spec.natural_key and ("required", None) not in rules:
            rules = [("required", None), *rules]  # it names the record in its event
        return FieldPlan(
            column=column,
            value=value,
            sources=tuple(spec.sources),
            failures=failures,
            conversions=conversions,
            checks=(
                *rule_checks(name, f"t:{name}", rules),
                *target_checks(column, dict(rules), target.key),
                *self._conflict_checks(target, unique, name),
            ),
            place=place,
            ref=spec.ref,
            ref_column=referred_column(self.mapping, targets, name, spec),
            on_missing=spec.on_missing,
            secret=spec.secret or bool({*spec.sources} & self.spec.secret_sources),
        )

    def _conflict_checks(self, target: Table, unique: tuple[Unique, ...], name: str) -> tuple[Check, ...]:
        """What `matching` marks as taken by another row of the target, told of its first column."""
        if self.policy == "fail":
            return ()
        message = "is taken by another record of the target"
        held = [one.columns for one in unique if one.columns[0] == name]
        columns = dict.fromkeys(listed(names) for names in held if are_comparable(target.pick(names)))
        return tuple(Check("conflict", names, message, pl.col(f"_taken:{names}")) for names in columns)

    def _value(
        self, name: str, spec: FieldMapping
    ) -> tuple[pl.Expr, tuple[Check, ...], tuple[tuple[Conversion, pl.Expr], ...]]:
        inputs = [pl.col(source) for source in spec.sources]
        expr = inputs[0] if inputs else pl.lit(None)
        failures: list[Check] = []
        conversions: list[tuple[Conversion, pl.Expr]] = []
        for step, argument in spec.transform:
            value = apply_transform(step, argument, inputs, self.settings)
            expr, inputs = value.expr, [value.expr]
            if value.failed is not None:
                failures.append(Check(step, name, value.message, value.failed.fill_null(value=False)))
            if value.conversion is not None:
                conversions.append((value.conversion, expr.is_not_null().sum()))
        return expr, tuple(failures), tuple(conversions)

    def _child(self, targets: Dict[str, Table], name: str) -> ChildPlan:
        spec: ChildMapping = self.spec.children[name]
        checks = tuple(
            check
            for column, rules in spec.rules.items()
            for check in rule_checks(column, f"s:{column}", rules)
        )
        make, conversions = child_function(spec.transform)
        return ChildPlan(
            name,
            targets[spec.to],
            spec.parent,
            tuple(spec.sources),
            make,
            conversions,
            checks,
            frozenset(spec.secret),
            (*self.place, "children", name),
        )

    def _columns_read(self, where: pl.Expr | None) -> tuple[str, ...]:
        filters = where.meta.root_names() if where is not None else []
        return tuple(sorted({*self.spec.mapped, *self.spec.key, *filters}))

    def _unique(self, target: Table) -> tuple[Unique, ...]:
        """What the target holds unique, and what the mapping wants unique; only mapped columns matter."""
        wanted = {
            Unique((name,), (name,) if target.columns[name].folds_case else ())
            for name, spec in self.spec.fields.items()
            if any(rule == "unique" for rule, _ in spec.rules)
        }
        held = {unique for unique in target.unique if {*unique.columns} <= {*self.spec.fields}}
        return tuple(sorted(held | wanted, key=lambda item: (item.columns, item.folded)))
