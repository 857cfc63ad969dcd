"""Tables as the engine sees them, whatever database they stand in: reflected, never taken on trust."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import polars as pl
import sqlalchemy as sa
from sqlalchemy import types as sat
from sqlalchemy.dialects import postgresql as pg

Kind = Literal[
    "integer",
    "boolean",
    "text",
    "float",
    "decimal",
    "datetime",
    "datetime_tz",
    "date",
    "uuid",
    "json",
    "binary",
    "other",
]

_DTYPES: dict[str, pl.DataType] = {
    "integer": pl.Int64(),
    "boolean": pl.Boolean(),
    "float": pl.Float64(),
    "datetime": pl.Datetime("us"),
    "datetime_tz": pl.Datetime("us", "UTC"),
    "date": pl.Date(),
    "binary": pl.Binary(),
}


@dataclass(frozen=True)
class Column:
    """One column. `bounds` are inclusive; `values` are the only ones an enum takes."""

    name: str
    kind: Kind
    type_name: str
    nullable: bool = True
    has_default: bool = False
    max_length: int | None = None
    bounds: tuple[int, int] | None = None
    values: tuple[str, ...] | None = None
    folds_case: bool = False
    is_computed: bool = False

    @property
    def dtype(self) -> pl.DataType:
        """The Polars type that its values are staged in; decimals, UUIDs and JSON are text."""
        return _DTYPES.get(self.kind, pl.String())


@dataclass(frozen=True)
class Unique:
    """Columns that are unique together; in those of `folded`, letters of either case are the same."""

    columns: tuple[str, ...]
    folded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """One table; `key` is its primary key in the order of the key's index, empty when it has none."""

    name: str
    columns: dict[str, Column]
    key: tuple[str, ...] = ()
    unique: tuple[Unique, ...] = ()

    @property
    def key_columns(self) -> list[Column]:
        """The columns of the key, in its order."""
        return self.pick(self.key)

    @property
    def is_numbered(self) -> bool:
        """Whether the key is one number: new rows can be counted, and a sequence may count them."""
        return [column.kind for column in self.key_columns] == ["integer"]

    def pick(self, names: Iterable[str]) -> list[Column]:
        """The columns of these names, each once."""
        return [self.columns[name] for name in dict.fromkeys(names)]

    def describe(self) -> dict[str, str]:
        """Column names and types, as an event states them."""
        return {name: column.type_name for name, column in self.columns.items()}

    def to_json(self) -> dict[str, Any]:
        """A form that JSON holds and `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Table:
        """The table that `to_json` wrote."""
        columns = {name: _column_from_json(column) for name, column in fields["columns"].items()}
        unique = tuple(_unique_from_json(item) for item in fields["unique"])
        key = fields["key"] or ()  # before there were keys of several columns, it was a name or null
        return cls(fields["name"], columns, (key,) if isinstance(key, str) else tuple(key), unique)


def reflect_tables(connection: sa.Connection, names: set[str]) -> dict[str, Table]:
    """The named tables that exist, by name."""
    inspector = sa.inspect(connection)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sa.exc.SAWarning)  # types and indexes of no matter to us
        present = names & {*inspector.get_table_names(), *inspector.get_view_names()}
        return {name: _reflect(inspector, name) for name in sorted(present)}


def _reflect(inspector: sa.Inspector, name: str) -> Table:
    key = inspector.get_pk_constraint(name)["constrained_columns"]
    columns = {item["name"]: _column(item) for item in inspector.get_columns(name)}
    if inspector.dialect.name == "sqlite":
        columns = _as_declared(inspector.bind, name, columns)
    folding = {column.name for column in columns.values() if column.folds_case}
    unique = [tuple(item["column_names"]) for item in inspector.get_unique_constraints(name)]
    found = {_unique(names, folding) for names in unique}
    for index in inspector.get_indexes(name, include_auto_indexes=True):  # SQLite's unique columns
        if index["unique"]:
            found |= _unique_index(dict(index), folding)
    if key:
        found.add(_unique(key, folding))
    ordered = tuple(sorted(found, key=lambda item: (item.columns, item.folded)))
    return Table(name, columns, tuple(key), ordered)


def _unique(names: Iterable[str], folding: set[str]) -> Unique:
    columns = tuple(names)
    return Unique(columns, tuple(name for name in columns if name in folding))


def _as_declared(bind: Any, table: str, columns: dict[str, Column]) -> dict[str, Column]:
    """SQLite keeps the names of types that it does not know, and SQLAlchemy takes them for numbers; and it
    is the columns of an index that fold case."""
    information = sa.func.pragma_table_xinfo(table).table_valued("name", "type")
    declared = dict(bind.execute(sa.select(information.c.name, information.c.type)).all())
    folding = _folding_in_sqlite(bind, table)
    return {
        name: _as_named(column, declared.get(name, ""), name in folding) for name, column in columns.items()
    }


def _as_named(column: Column, declared: str, folds: bool) -> Column:
    word = declared.upper().partition("(")[0].strip()
    kind = _DECLARED.get(word, column.kind)
    if column.kind == "decimal" and not word.startswith(("NUM", "DEC", "MONEY")) and word not in _DECLARED:
        kind = "text"
    changed = kind != column.kind
    return replace(
        column, kind=kind, type_name=word.lower() if changed else column.type_name, folds_case=folds
    )


def _folding_in_sqlite(bind: Any, table: str) -> set[str]:
    indexes = sa.func.pragma_index_list(table).table_valued("name", "unique")
    names = bind.scalars(sa.select(indexes.c.name).where(indexes.c.unique == 1)).all()
    found = set()
    for name in names:
        held = sa.func.pragma_index_xinfo(name).table_valued("name", "coll", "key")
        folded = sa.select(held.c.name).where(held.c.key == 1, held.c.coll == "NOCASE")
        found |= {*bind.scalars(folded)}
    return found


_DECLARED: dict[str, Kind] = {
    "UUID": "uuid",
    "TIMESTAMPTZ": "datetime",
    "TIMESTAMP WITH TIME ZONE": "datetime",
    "TIMESTAMP WITHOUT TIME ZONE": "datetime",
    "JSONB": "json",
    "BYTEA": "binary",
    "DOUBLE PRECISION": "float",
}
"""Names of types of other databases, which SQLite takes down and does not know."""


def _unique_index(index: dict[str, Any], folding: set[str]) -> set[Unique]:
    """An index over columns, or over lower(column); a partial one binds too few rows to judge by."""
    if index.get("dialect_options", {}).get("postgresql_where"):
        return set()
    expressions = index.get("expressions") or index["column_names"]
    names, folding = [], {*folding}
    for expression in expressions:
        lowered = re.fullmatch(r'lower\(\(?"?(\w+)"?\)?(::[\w ]+)?\)', str(expression))
        names.append(lowered.group(1) if lowered else str(expression))
        folding |= {lowered.group(1)} if lowered else set()
    return {_unique(names, folding)}


def _column(item: Any) -> Column:
    kind = _kind(item["type"])
    return Column(
        name=item["name"],
        kind=kind,
        type_name=_type_name(item["type"]),
        nullable=bool(item["nullable"]),
        has_default=bool(item["default"] or item.get("identity") or item.get("computed")),
        max_length=item["type"].length if kind == "text" and isinstance(item["type"], sat.String) else None,
        bounds=_bounds(item["type"]),
        values=tuple(item["type"].enums) if isinstance(item["type"], sat.Enum) else None,
        folds_case=isinstance(item["type"], pg.CITEXT),
        is_computed=bool(item.get("computed")),
    )


def _kind(of: sat.TypeEngine[Any]) -> Kind:
    if isinstance(of, sat.DateTime):
        return "datetime_tz" if of.timezone else "datetime"
    kinds: list[tuple[Any, Kind]] = [
        (sat.Boolean, "boolean"),
        (sat.Integer, "integer"),
        (sat.Float, "float"),
        (sat.Numeric, "decimal"),
        (sat.Date, "date"),
        (sat.Uuid, "uuid"),
        (sat.JSON, "json"),
        (sat.LargeBinary, "binary"),
        (sat.String, "text"),
    ]
    return next((kind for cls, kind in kinds if isinstance(of, cls)), "other")


def _bounds(of: sat.TypeEngine[Any]) -> tuple[int, int] | None:
    if not isinstance(of, sat.Integer):
        return None
    bits = 16 if isinstance(of, sat.SmallInteger) else 64 if isinstance(of, sat.BigInteger) else 32
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def _type_name(of: sat.TypeEngine[Any]) -> str:
    if isinstance(of, sat.Enum):
        return f"enum {of.name}" if of.name else "enum"
    try:
        name = str(of).lower()
    except sa.exc.CompileError:
        return type(of).__name__.lower()
    return f"{name} with time zone" if isinstance(of, sat.DateTime) and of.timezone else name


def _column_from_json(fields: Mapping[str, Any]) -> Column:
    values = {**fields}
    for name in ("bounds", "values"):
        values[name] = tuple(values[name]) if values[name] is not None else None
    return Column(**values)


def _unique_from_json(fields: Mapping[str, Any]) -> Unique:
    """Once a constraint folded all of its columns or none."""
    columns = tuple(fields["columns"])
    folded = fields["folded"] if "folded" in fields else columns if fields["folds_case"] else ()
    return Unique(columns, tuple(folded))
