"""Fitting: whether a mapping speaks of tables and columns that are there, and leaves none of them out.

Every flaw is found in one look. What needs a table that is not there is not judged until it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Mapping as Dict

import polars as pl

from pipelines.migration.flaws import Flaws, instead, near
from pipelines.migration.keys import PARTS, key_dtype, listed
from pipelines.migration.mapping import ChildMapping, FieldMapping, Mapping
from pipelines.migration.plan import Place, made_columns
from pipelines.migration.schema import Table
from pipelines.migration.transforms import Settings, apply_transform, child_function


def refuse_misfits(
    mapping: Mapping, source: Dict[str, Table], target: Dict[str, Table], settings: Settings
) -> None:
    """Raise MappingError, with every flaw, unless the mapping can be compiled against these tables."""
    flaws = mapping.flaws()
    _check_shared_tables(mapping, flaws)
    for name in mapping.entities:
        _Fitting(mapping, name, flaws, settings).check(source, target)
    flaws.refuse()


def referred_column(mapping: Mapping, targets: Dict[str, Table], name: str, field: FieldMapping) -> str:
    """The column of the key that a reference is to, as the mapping says; empty for what is none."""
    if field.ref is None:
        return ""
    key = targets[mapping.entities[field.ref].to].key
    return key[0] if len(key) == 1 and field.ref_column is None else field.ref_column or name


def _check_shared_tables(mapping: Mapping, flaws: Flaws) -> None:
    """Each target table is written by one entity, or by the children of one."""
    seen: set[str] = set()
    for name, entity in mapping.entities.items():
        places: dict[Place, str] = {("entities", name, "to"): entity.to}
        for key, child in entity.children.items():
            places["entities", name, "children", key, "to"] = child.to
        for place, table in places.items():
            if table in seen:
                flaws.add(place, f"the target table {table!r} is written twice")
            seen.add(table)


class _Fitting:
    """Holds one entity against its tables, and knows its place in the file."""

    def __init__(self, mapping: Mapping, name: str, flaws: Flaws, settings: Settings) -> None:
        self.mapping, self.spec, self.policy = mapping, mapping.entities[name], mapping.policy(name)
        self.place: Place = ("entities", name)
        self.flaws, self.settings = flaws, settings

    def check(self, sources: Dict[str, Table], targets: Dict[str, Table]) -> None:
        spec = self.spec
        source = self._table(sources, spec.source, (*self.place, "from"), "source")
        target = self._table(targets, spec.to, (*self.place, "to"), "target")
        if source is not None:
            self._columns(source, spec.key, (*self.place, "key"))
            self._parts(source, spec.key, (*self.place, "key"), PARTS | {"decimal"})  # of one database only
            for name, field in spec.fields.items():
                self._columns(source, field.sources, (*self.place, "fields", name, "from"))
            for name, child in spec.children.items():
                self._columns(source, child.sources, (*self.place, "children", name, "from"))
            self._all_listed(source, self._filters(source))
        if target is not None:
            self._keyed(target, (*self.place, "to"), filled={*spec.fields})
            for name in spec.fields:
                self._columns(target, [name], (*self.place, "fields", name))
                self._reference(targets, name)
            self._matchable(target)
            self._no_secret_key(target)
        for name in spec.fields:
            self._transforms(name)
        for name, child in spec.children.items():
            self._child(source, target, targets, (*self.place, "children", name), child)
        self._no_secret_names()

    def _table(self, tables: Dict[str, Table], name: str, place: Place, side: str) -> Table | None:
        if name not in tables:
            self.flaws.add(place, f"the {side} has no table {name!r}")
        return tables.get(name)

    def _columns(self, table: Table, names: Iterable[str], place: Place) -> None:
        for name in names:
            if name not in table.columns:
                reason = f"the table {table.name!r} has no column {name!r}"
                self.flaws.add(place, reason + instead(name, table.columns))

    def _keyed(self, table: Table, place: Place, *, filled: set[str]) -> None:
        """Of a key of several columns, nothing can be counted up: something must fill each."""
        if not table.key:
            self.flaws.add(place, f"the table {table.name!r} has no primary key")
        left = [repr(name) for name in table.key if name not in filled]
        if len(table.key) > 1 and left:
            reason = f"{table.name!r} has the key {listed(table.key)}, and nothing fills {', '.join(left)}"
            self.flaws.add(place, reason)
        self._parts(table, table.key, place)

    def _parts(self, table: Table, names: Sequence[str], place: Place, kinds: frozenset[str] = PARTS) -> None:
        """What is part of a longer key must have one text in every database."""
        for column in table.pick(name for name in names if len(names) > 1 and name in table.columns):
            if column.kind not in kinds:
                reason = f"the column {column.name!r} of type {column.type_name}"
                self.flaws.add(place, f"{reason} cannot be part of a key of several columns")

    def _reference(self, targets: Dict[str, Table], name: str) -> None:
        spec = self.spec.fields[name]
        parent = self.mapping.entities.get(spec.ref or "")
        table = targets.get(parent.to) if parent else None
        if table is None or not table.key:
            return
        column = referred_column(self.mapping, targets, name, spec)
        if column not in table.key:
            known = f"which is {listed(table.key)}; name one as 'ref_column'"
            reason = f"{column!r} is not a column of the key of {table.name!r}, {known}"
            self.flaws.add((*self.place, "fields", name), reason)

    def _matchable(self, target: Table) -> None:
        """A record that may be there already is matched by its natural key, which then must be unique."""
        natural = self.spec.natural_key
        told = PARTS | {"decimal", "float", "json"}  # of a name that nothing is matched by
        self._parts(target, natural, (*self.place, "natural_key"), told if self.policy == "fail" else PARTS)
        if self.policy == "fail" or not {*natural} <= {*target.columns}:
            return
        place, last = (*self.place, "on_conflict"), self.spec.fields[natural[-1]]
        wanted = len(natural) == 1 and any(rule == "unique" for rule, _ in last.rules)
        if not wanted and not any({*held.columns} == {*natural} for held in target.unique):
            reason = f"{self.policy!r} needs a unique natural key, and {target.name}.{listed(natural)} is not"
            self.flaws.add(place, reason)
        if self.policy == "rename" and (target.columns[natural[-1]].kind != "text" or last.ref):
            ends = "" if len(natural) == 1 else " at the end"
            reason = f"'rename' needs a natural key of text{ends}, unlike {natural[-1]!r}"
            self.flaws.add(place, reason)

    def _no_secret_key(self, target: Table) -> None:
        for name in target.key:
            if name in self.spec.fields and self.spec.fields[name].secret:
                reason = "is secret, and part of the target's key, which stands in every event"
                self.flaws.add((*self.place, "fields", name, "secret"), reason)

    def _transforms(self, name: str) -> None:
        """A transform may refuse what only the whole field shows, such as how many columns it gets."""
        field = self.spec.fields[name]
        inputs = [pl.col(source) for source in field.sources]
        for index, (step, argument) in enumerate(field.transform):
            try:
                inputs = [apply_transform(step, argument, inputs, self.settings).expr]
            except ValueError as error:
                self.flaws.add((*self.place, "fields", name, "transform", index), str(error))
                return

    def _child(
        self,
        source: Table | None,
        target: Table | None,
        targets: Dict[str, Table],
        place: Place,
        child: ChildMapping,
    ) -> None:
        table = self._table(targets, child.to, (*place, "to"), "target")
        if table is not None:
            self._columns(table, child.parent, (*place, "parent"))
            self._columns(table, child.secret, (*place, "secret"))
        if source is None or target is None or not target.key or not {*child.sources} <= {*source.columns}:
            return
        if len(child.parent) != len(target.key):
            reason = f"must name a column for each of the key of {target.name!r}, {listed(target.key)}"
            self.flaws.add((*place, "parent"), reason)
        make, _ = child_function(child.transform)
        try:
            made = made_columns(
                make, source.pick(child.sources), key_dtype(target.key_columns), self.settings
            )
        except ValueError as error:
            self.flaws.add((*place, "transform"), str(error))
            return
        if table is not None:
            self._keyed(table, (*place, "to"), filled={*made, *child.parent})

    def _filters(self, source: Table) -> set[str]:
        """The columns that `where` looks at."""
        if self.spec.where is None:
            return set()
        place = (*self.place, "where")
        try:
            expr = pl.sql_expr(self.spec.where)
            names = expr.meta.root_names()
            missing = {*names} - {*source.columns}
            empty = pl.DataFrame(schema={name: column.dtype for name, column in source.columns.items()})
            if missing:
                self._columns(source, sorted(missing), place)
            elif empty.select(expr).dtypes != [pl.Boolean()]:
                self.flaws.add(place, "is not a condition")
        except pl.exceptions.PolarsError:
            self.flaws.add(place, "is not an SQL condition over the source's columns")
            return {*source.columns}  # which ones it looks at is not known: none can be called left out
        return {*names}

    def _all_listed(self, source: Table, filters: set[str]) -> None:
        place, ignored = (*self.place, "ignore"), self.spec.ignore
        self._columns(source, ignored, place)
        for name in ignored:
            if name in self.spec.mapped:
                self.flaws.add(place, f"the column {name!r} is mapped and ignored")
        used = {*self.spec.mapped, *filters, *ignored, *self.spec.key}
        meant = {near(name, source.columns) for name in used - {*source.columns}}  # one slip is one flaw
        left = [repr(name) for name in source.columns if name not in used | meant]
        if left:
            columns, are = ("column", "is") if len(left) == 1 else ("columns", "are")
            listed = f"the source {columns} {', '.join(left)} of {source.name!r}"
            self.flaws.add(place, f"{listed} {are} neither mapped nor ignored")

    def _no_secret_names(self) -> None:
        """Keys and natural keys stand in every event."""
        natural = {name for field in self.spec.natural_key for name in self.spec.fields[field].sources}
        named = {"key": {*self.spec.key}, "natural_key": natural}
        for key, columns in named.items():
            if columns & self.spec.secret_sources:
                self.flaws.add((*self.place, key), "is made of a secret column, and stands in every event")
