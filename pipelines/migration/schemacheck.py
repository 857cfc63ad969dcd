"""The schema check: do source and target fit, before any record is written.

A blocker would lose or falsify data and stops the run; a warning is something to know.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from pipelines.migration.context import RunContext
from pipelines.migration.errors import SchemaIncompatibleError
from pipelines.migration.keys import listed
from pipelines.migration.load import tables_written
from pipelines.migration.manifest import StageOutcome
from pipelines.migration.plan import ChildPlan, EntityPlan, FieldPlan, Plan
from pipelines.migration.schema import Column


def check_schema(run: RunContext) -> StageOutcome:
    """Compare types, lengths, nullability and uniqueness; the outcome names blockers and warnings."""
    blockers = [text for entity in run.plan.entities.values() for text in _blockers(run.plan, entity)]
    references = _references(run)
    blockers += [*_reference_blockers(run.plan, references)]
    warnings = [text for entity in run.plan.entities.values() for text in _warnings(entity)]
    warnings += [
        f"{table}.{listed(columns)}: refers to its own table; a row whose parent comes later is set aside"
        for table, columns, parent in references
        if table == parent
    ]
    entities = run.plan.entities.values()
    targets = {entity.target.name: entity.target.describe() for entity in entities}
    targets |= {child.table.name: child.table.describe() for e in entities for child in e.children.values()}
    facts: dict[str, Any] = {
        "source_schema": {entity.source.name: entity.source.describe() for entity in entities},
        "target_schema": targets,
        "compatibility_result": {"compatible": not blockers, "blockers": blockers, "warnings": warnings},
    }
    return run.finish("schema", facts)


def refuse_blockers(outcome: StageOutcome) -> None:
    """Raise SchemaIncompatibleError when the check found a blocker."""
    blockers = outcome.facts["compatibility_result"]["blockers"]
    if blockers:
        raise SchemaIncompatibleError(blockers)


def _blockers(plan: Plan, entity: EntityPlan) -> Iterator[str]:
    empty = pl.DataFrame(schema={name: entity.source.columns[name].dtype for name in entity.columns})
    for name in entity.columns:
        column = entity.source.columns[name]
        if column.kind == "other":
            yield f"{entity.source.name}.{name}: the type {column.type_name} is not supported"
    yield from _enum_blockers(entity)
    for field in entity.fields.values():
        yield from _field_blockers(plan, entity, field, empty)
    for name in entity.target.key:
        if name not in entity.fields and not entity.target.is_numbered:
            yield f"{entity.target.name}.{name}: the key is not a number, so a field must give it"
    filled = {*entity.loaded_columns}
    yield from _unfilled(entity.target.name, entity.target.columns, filled)
    for child in entity.children.values():
        yield from _child_blockers(plan, entity, child)


def _field_blockers(plan: Plan, entity: EntityPlan, field: FieldPlan, empty: pl.DataFrame) -> Iterator[str]:
    where = f"{entity.target.name}.{field.column.name}"
    if field.column.kind == "other":
        yield f"{where}: the type {field.column.type_name} is not supported"
        return
    if field.ref is not None:
        parent = plan.entities[field.ref].target
        given = parent.columns[field.ref_column].dtype
    else:
        try:
            given = empty.select(field.value.alias("v")).dtypes[0]
        except (pl.exceptions.PolarsError, TypeError) as error:
            yield f"{where}: a transform does not fit its input ({type(error).__name__})"
            return
    if given not in (field.column.dtype, pl.Null()) and not _widens(given, field.column.dtype):
        yield f"{where}: {given} does not fit {field.column.type_name}; add a transform"


def _references(run: RunContext) -> list[tuple[str, tuple[str, ...], str]]:
    """The foreign keys between the tables that are written: (table, columns, the table referred to)."""
    written = [table.name for table in tables_written(run.plan)]
    found = [(item, parent) for parent in written for item in run.target.references_to(parent)]
    return [(item.table.name, item.columns, parent) for item, parent in found if item.table.name in written]


def _reference_blockers(plan: Plan, references: list[tuple[str, tuple[str, ...], str]]) -> Iterator[str]:
    """Cycles of foreign keys, which no order of loading satisfies, and those that this order does not."""
    order = {table.name: place for place, table in enumerate(tables_written(plan))}
    filled = {e.target.name: {*e.fields} for e in plan.entities.values()}
    filled |= {c.table.name: {*c.parent} for e in plan.entities.values() for c in e.children.values()}
    edges = {(t, parent) for t, columns, parent in references if t != parent and {*columns} <= filled[t]}
    cyclic = {(table, parent) for table, parent in edges if _leads(parent, table, edges)}
    if cyclic:
        names = ", ".join(sorted({table for table, _ in cyclic}))
        yield f"the foreign keys between {names} form a cycle: leave one of them unmapped"
    for table, parent in sorted(edges - cyclic):
        if order[parent] > order[table]:
            yield f"{table}: refers to {parent}, which is loaded later; add it to depends_on"


def _leads(start: str, end: str, edges: set[tuple[str, str]]) -> bool:
    seen, waiting = set[str](), [start]
    while waiting:
        here = waiting.pop()
        if here == end:
            return True
        if here not in seen:
            seen.add(here)
            waiting += [parent for table, parent in edges if table == here]
    return False


def _enum_blockers(entity: EntityPlan) -> Iterator[str]:
    """A mapped or fixed value that the target's enum does not have: it would fail in every row."""
    for name, spec in entity.mapping.fields.items():
        allowed = entity.target.columns[name].values
        if allowed is None or not spec.transform:
            continue
        step, argument = spec.transform[-1]
        made = {"map": [*argument.values()] if step == "map" else [], "const": [argument]}.get(step, [])
        wrong = sorted({str(value) for value in made if value is not None} - {*allowed})
        if wrong:
            yield f"{entity.target.name}.{name}: {', '.join(wrong)} is not one of {', '.join(allowed)}"


def _widens(given: pl.DataType, wanted: pl.DataType) -> bool:
    """A moment with its zone may go into a column without one: it is kept in UTC."""
    if wanted == pl.Datetime("us"):
        return given == pl.Datetime("us", "UTC")
    return given.is_integer() and (wanted == pl.Int64() or wanted == pl.Float64())


def _unfilled(table: str, columns: dict[str, Column], filled: set[str]) -> Iterator[str]:
    for name, column in columns.items():
        if name not in filled and not column.nullable and not column.has_default:
            yield f"{table}.{name}: must not be null, has no default, and nothing fills it"


def _child_blockers(plan: Plan, entity: EntityPlan, child: ChildPlan) -> Iterator[str]:
    filled = {*child.made_columns(entity.source, entity.record_dtype, plan.settings)}
    if not child.table.is_numbered and not child.has_given_key(filled):
        key = listed(child.table.key)
        yield f"{child.table.name}.{key}: the key of a child's table must be a number, or made with the child"
    for name in sorted(filled - {*child.table.columns}):
        yield f"{child.table.name}.{name}: the child's transform makes a column that is not there"
    yield from _unfilled(child.table.name, child.table.columns, filled | {*child.parent, *child.table.key})
    for own, part in zip(child.table.pick(child.parent), entity.target_key, strict=True):
        if own.dtype != part.dtype:
            yield f"{child.table.name}.{own.name}: does not fit the key of {entity.target.name}"


def _warnings(entity: EntityPlan) -> Iterator[str]:
    for field in entity.fields.values():
        sources = [entity.source.columns[name] for name in field.sources]
        where = f"{entity.target.name}.{field.column.name}"
        if len(sources) != 1:
            continue
        source, target = sources[0], field.column
        if (
            target.max_length
            and (source.max_length or target.max_length + 1) > target.max_length
            and source.kind == "text"
        ):
            given = source.max_length or "any number"
            yield f"{where}: takes {target.max_length} characters, the source {given}"
        may_be_null = source.nullable and source.name not in entity.mapping.key
        if not target.nullable and may_be_null and field.ref is None:
            yield f"{where}: must not be null, and the source may be"
    for unique in entity.unique:
        where = f"{entity.target.name}.{', '.join(unique.columns)}"
        if not any(held.columns == unique.columns for held in entity.source.unique):
            yield f"{where}: unique in the target, not in the source"
        elif unique.folded and unique not in entity.source.unique:
            yield f"{where}: unique whatever the case of letters in the target, not in the source"
    left = [
        name
        for name, column in entity.target.columns.items()
        if name not in entity.loaded_columns and (column.nullable or column.has_default)
    ]
    if left:
        yield f"{entity.target.name}: nothing fills {', '.join(left)}; null or the default stands there"
