"""Fitting: whether a mapping speaks of tables and columns that are there, and leaves none of them out.

Every flaw is found in one look. What needs a table that is not there is not judged until it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping as Dict

import polars as pl

from pipelines.migration.flaws import Flaws, instead, near
from pipelines.migration.mapping import ChildMapping, Mapping
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
        self.spec, self.policy = mapping.entities[name], mapping.policy(name)
        self.place: Place = ("entities", name)
        self.flaws, self.settings = flaws, settings

    def check(self, sources: Dict[str, Table], targets: Dict[str, Table]) -> None:
        spec = self.spec
        source = self._table(sources, spec.source, (*self.place, "from"), "source")
        target = self._table(targets, spec.to, (*self.place, "to"), "target")
        if source is not None:
            self._columns(source, [spec.key], (*self.place, "key"))
            for name, field in spec.fields.items():
                self._columns(source, field.sources, (*self.place, "fields", name, "from"))
            for name, child in spec.children.items():
                self._columns(source, child.sources, (*self.place, "children", name, "from"))
            self._all_listed(source, self._filters(source))
        if target is not None:
            self._keyed(target, (*self.place, "to"))
            for name in spec.fields:
                self._columns(target, [name], (*self.place, "fields", name))
            self._matchable(target)
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

    def _keyed(self, table: Table, place: Place) -> None:
        if table.key is None:
            self.flaws.add(place, f"the table {table.name!r} has no primary key of one column")

    def _matchable(self, target: Table) -> None:
        """A record that may be there already is matched by its natural key, which then must be unique."""
        natural = self.spec.natural_key
        if self.policy == "fail" or natural not in target.columns:
            return
        place, field = (*self.place, "on_conflict"), self.spec.fields[natural]
        wanted = any(rule == "unique" for rule, _ in field.rules)
        if not wanted and not any(held.columns == (natural,) for held in target.unique):
            reason = f"{self.policy!r} needs a unique natural key, and {target.name}.{natural} is not"
            self.flaws.add(place, reason)
        if field.ref:
            self.flaws.add(place, f"{self.policy!r} cannot match by a reference")
        if self.policy == "rename" and target.columns[natural].kind != "text":
            self.flaws.add(place, f"'rename' needs a natural key of text, unlike {natural!r}")

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
            self._keyed(table, (*place, "to"))
            self._columns(table, [child.parent], (*place, "parent"))
            self._columns(table, child.secret, (*place, "secret"))
        if (
            source is None
            or target is None
            or target.key is None
            or not {*child.sources} <= {*source.columns}
        ):
            return
        make, _ = child_function(child.transform)
        columns = [source.columns[name] for name in child.sources]
        try:
            made_columns(make, columns, target.columns[target.key], self.settings)
        except ValueError as error:
            self.flaws.add((*place, "transform"), str(error))

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
        used = {*self.spec.mapped, *filters, *ignored, self.spec.key}
        meant = {near(name, source.columns) for name in used - {*source.columns}}  # one slip is one flaw
        left = [repr(name) for name in source.columns if name not in used | meant]
        if left:
            columns, are = ("column", "is") if len(left) == 1 else ("columns", "are")
            listed = f"the source {columns} {', '.join(left)} of {source.name!r}"
            self.flaws.add(place, f"{listed} {are} neither mapped nor ignored")

    def _no_secret_names(self) -> None:
        """Keys and natural keys stand in every event."""
        named = {"key": [self.spec.key], "natural_key": self.spec.fields[self.spec.natural_key].sources}
        for key, columns in named.items():
            if {*columns} & self.spec.secret_sources:
                self.flaws.add((*self.place, key), "is made of a secret column, and stands in every event")
