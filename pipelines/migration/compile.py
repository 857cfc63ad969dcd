"""Compile: a mapping against the tables that are there, into the plan that the stages follow.

Whatever the mapping says of tables and columns that are not there is refused here, with its line.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from datetime import datetime

import polars as pl

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
from pipelines.migration.schema import Column, Table, Unique
from pipelines.migration.transforms import Conversion, Settings, apply_transform, child_function


def tables_of(mapping: Mapping) -> tuple[set[str], set[str]]:
    """The names of the source and of the target tables that a mapping speaks of."""
    entities = mapping.entities.values()
    children = {child.to for entity in entities for child in entity.children.values()}
    return {entity.source for entity in entities}, {*(entity.to for entity in entities), *children}


def compile_plan(mapping: Mapping, source: Dict[str, Table], target: Dict[str, Table], now: datetime) -> Plan:
    """Compile a mapping against the tables that are there.

    Raises MappingError, naming line and field, for a table, column or key that is not there and for a
    source column that is neither mapped nor ignored.
    """
    _refuse_shared_tables(mapping)
    settings = Settings(mapping.params, now)
    entities = {
        name: _Compiler(mapping, name, settings).entity(source, target) for name in mapping.in_order()
    }
    return Plan(mapping, entities, settings, source)


def _refuse_shared_tables(mapping: Mapping) -> None:
    """Each target table is written by one entity, or by the children of one."""
    seen: set[str] = set()
    for name, entity in mapping.entities.items():
        places: dict[Place, str] = {("entities", name, "to"): entity.to}
        for key, child in entity.children.items():
            places["entities", name, "children", key, "to"] = child.to
        for place, table in places.items():
            if table in seen:
                raise mapping.error(place, f"the target table {table!r} is written twice")
            seen.add(table)


class _Compiler:
    """Compiles one entity, and knows its place in the file."""

    def __init__(self, mapping: Mapping, name: str, settings: Settings) -> None:
        self.mapping, self.name, self.settings = mapping, name, settings
        self.spec = mapping.entities[name]
        self.policy = self.spec.on_conflict or mapping.on_conflict
        self.place: Place = ("entities", name)

    def entity(self, sources: Dict[str, Table], targets: Dict[str, Table]) -> EntityPlan:
        spec, place = self.spec, self.place
        source = self._table(sources, spec.source, (*place, "from"), "source")
        target = self._table(targets, spec.to, (*place, "to"), "target")
        self._column(source, spec.key, (*place, "key"))
        self._keyed(target, (*place, "to"))
        unique = self._unique(target)
        self._matchable(target, unique)
        fields = {name: self._field(source, target, unique, name) for name in spec.fields}
        children = {name: self._child(source, target, targets, name) for name in spec.children}
        where = self._where(source)
        self._all_listed(source, where)
        self._refuse_secret_names()
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
            secret_sources=self._secret_sources(),
            place=place,
            policy=self.policy,
        )

    def _matchable(self, target: Table, unique: tuple[Unique, ...]) -> None:
        """A record that may be there already is matched by its natural key, which then must be unique."""
        natural = self.spec.natural_key
        if self.policy == "fail":
            return
        place = (*self.place, "on_conflict")
        if not any(held.columns == (natural,) for held in unique):
            reason = f"{self.policy!r} needs a unique natural key, and {target.name}.{natural} is not"
            raise self.mapping.error(place, reason)
        if self.spec.fields[natural].ref:
            raise self.mapping.error(place, f"{self.policy!r} cannot match by a reference")
        if self.policy == "rename" and target.columns[natural].kind != "text":
            raise self.mapping.error(place, f"'rename' needs a natural key of text, unlike {natural!r}")

    def _table(self, tables: Dict[str, Table], name: str, place: Place, side: str) -> Table:
        if name not in tables:
            raise self.mapping.error(place, f"the {side} has no table {name!r}")
        return tables[name]

    def _column(self, table: Table, name: str, place: Place) -> Column:
        if name not in table.columns:
            raise self.mapping.error(place, f"the table {table.name!r} has no column {name!r}")
        return table.columns[name]

    def _keyed(self, table: Table, place: Place) -> None:
        if table.key is None:
            raise self.mapping.error(place, f"the table {table.name!r} has no primary key of one column")

    def _field(self, source: Table, target: Table, unique: tuple[Unique, ...], name: str) -> FieldPlan:
        place = (*self.place, "fields", name)
        spec = self.spec.fields[name]
        column = self._column(target, name, place)
        for source_name in spec.sources:
            self._column(source, source_name, (*place, "from"))
        value, failures, conversions = self._value(name, spec)
        rules = spec.rules
        if name == self.spec.natural_key and ("required", None) not in rules:
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
                *self._conflict_checks(unique, name),
            ),
            place=place,
            ref=spec.ref,
            on_missing=spec.on_missing,
            secret=spec.secret or bool({*spec.sources} & self._secret_sources()),
        )

    def _conflict_checks(self, unique: tuple[Unique, ...], name: str) -> tuple[Check, ...]:
        """What `matching` marks as taken by another row of the target."""
        if self.policy == "fail" or not any(held.columns == (name,) for held in unique):
            return ()
        message = "is taken by another record of the target"
        return (Check("conflict", name, message, pl.col(f"_taken:{name}")),)

    def _value(
        self, name: str, spec: FieldMapping
    ) -> tuple[pl.Expr, tuple[Check, ...], tuple[tuple[Conversion, pl.Expr], ...]]:
        inputs = [pl.col(source) for source in spec.sources]
        expr = inputs[0] if inputs else pl.lit(None)
        failures: list[Check] = []
        conversions: list[tuple[Conversion, pl.Expr]] = []
        for step, argument in spec.transform:
            try:
                value = apply_transform(step, argument, inputs, self.settings)
            except ValueError as error:
                raise self.mapping.error((*self.place, "fields", name, "transform"), str(error)) from None
            expr, inputs = value.expr, [value.expr]
            if value.failed is not None:
                failures.append(Check(step, name, value.message, value.failed.fill_null(value=False)))
            if value.conversion is not None:
                conversions.append((value.conversion, expr.is_not_null().sum()))
        return expr, tuple(failures), tuple(conversions)

    def _child(self, source: Table, target: Table, targets: Dict[str, Table], name: str) -> ChildPlan:
        place = (*self.place, "children", name)
        spec: ChildMapping = self.spec.children[name]
        table = self._table(targets, spec.to, (*place, "to"), "target")
        self._keyed(table, (*place, "to"))
        self._column(table, spec.parent, (*place, "parent"))
        for column in spec.secret:
            self._column(table, column, (*place, "secret"))
        for column in spec.sources:
            self._column(source, column, (*place, "from"))
        checks = tuple(
            check
            for column, rules in spec.rules.items()
            for check in rule_checks(column, f"s:{column}", rules)
        )
        make, conversions = child_function(spec.transform)
        plan = ChildPlan(
            name,
            table,
            spec.parent,
            tuple(spec.sources),
            make,
            conversions,
            checks,
            frozenset(spec.secret),
            place,
        )
        try:
            plan.made_columns(source, target.columns[target.key or ""], self.settings)
        except ValueError as error:
            raise self.mapping.error((*place, "transform"), str(error)) from None
        return plan

    def _where(self, source: Table) -> pl.Expr | None:
        if self.spec.where is None:
            return None
        place = (*self.place, "where")
        try:
            expr = pl.sql_expr(self.spec.where)
            for name in expr.meta.root_names():
                self._column(source, name, place)
            empty = pl.DataFrame(schema={name: column.dtype for name, column in source.columns.items()})
            is_condition = empty.select(expr).dtypes == [pl.Boolean()]
        except pl.exceptions.PolarsError:
            raise self.mapping.error(place, "is not an SQL condition over the source's columns") from None
        if not is_condition:
            raise self.mapping.error(place, "is not a condition")
        return expr

    def _mapped(self) -> set[str]:
        by_field = {source for spec in self.spec.fields.values() for source in spec.sources}
        by_child = {source for child in self.spec.children.values() for source in child.sources}
        return by_field | by_child

    def _all_listed(self, source: Table, where: pl.Expr | None) -> None:
        place = (*self.place, "ignore")
        for name in self.spec.ignore:
            self._column(source, name, place)
            if name in self._mapped():
                raise self.mapping.error(place, f"the column {name!r} is mapped and ignored")
        used = {*self._mapped(), self.spec.key, *(where.meta.root_names() if where is not None else ())}
        left = [name for name in source.columns if name not in used and name not in self.spec.ignore]
        if left:
            reason = f"the source column {left[0]!r} of {source.name!r} is neither mapped nor ignored"
            raise self.mapping.error(place, reason)

    def _columns_read(self, where: pl.Expr | None) -> tuple[str, ...]:
        filters = where.meta.root_names() if where is not None else []
        return tuple(sorted({*self._mapped(), self.spec.key, *filters}))

    def _unique(self, target: Table) -> tuple[Unique, ...]:
        """What the target holds unique, and what the mapping wants unique; only mapped columns matter."""
        wanted = {
            Unique((name,), folds_case=target.columns[name].folds_case)
            for name, spec in self.spec.fields.items()
            if any(rule == "unique" for rule, _ in spec.rules)
        }
        held = {unique for unique in target.unique if {*unique.columns} <= {*self.spec.fields}}
        return tuple(sorted(held | wanted, key=lambda item: (item.columns, item.folds_case)))

    def _secret_sources(self) -> frozenset[str]:
        by_field = {source for spec in self.spec.fields.values() if spec.secret for source in spec.sources}
        by_child = {source for child in self.spec.children.values() for source in child.secret_sources}
        return frozenset(by_field | by_child)

    def _refuse_secret_names(self) -> None:
        """Keys and natural keys stand in every event."""
        named = {"key": [self.spec.key], "natural_key": self.spec.fields[self.spec.natural_key].sources}
        for key, columns in named.items():
            if {*columns} & self._secret_sources():
                raise self.mapping.error(
                    (*self.place, key), "is made of a secret column, and stands in every event"
                )
