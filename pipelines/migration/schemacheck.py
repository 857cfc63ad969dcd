"""The schema check: do source and target fit, before any record is written.

A blocker would lose or falsify data and stops the run; a warning is something to know.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from pipelines.migration.context import RunContext
from pipelines.migration.errors import SchemaIncompatibleError
from pipelines.migration.manifest import StageOutcome
from pipelines.migration.plan import ChildPlan, EntityPlan, FieldPlan, Plan
from pipelines.migration.schema import Column


def check_schema(run: RunContext) -> StageOutcome:
    """Compare types, lengths, nullability and uniqueness; the outcome names blockers and warnings."""
    blockers = [text for entity in run.plan.entities.values() for text in _blockers(run.plan, entity)]
    warnings = [text for entity in run.plan.entities.values() for text in _warnings(entity)]
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
    for field in entity.fields.values():
        yield from _field_blockers(plan, entity, field, empty)
    key = entity.target.columns[entity.target_key]
    if key.name not in entity.fields and key.kind != "integer":
        yield f"{entity.target.name}.{key.name}: the key is not a number, so a field must give it"
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
        given = parent.columns[plan.entities[field.ref].target_key].dtype
    else:
        try:
            given = empty.select(field.value.alias("v")).dtypes[0]
        except (pl.exceptions.PolarsError, TypeError) as error:
            yield f"{where}: a transform does not fit its input ({type(error).__name__})"
            return
    if given not in (field.column.dtype, pl.Null()) and not _widens(given, field.column.dtype):
        yield f"{where}: {given} does not fit {field.column.type_name}; add a transform"


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
    assert child.table.key is not None
    if child.table.columns[child.table.key].kind != "integer":
        yield f"{child.table.name}.{child.table.key}: the key of a child's table must be a number"
    wanted = entity.target.columns[entity.target_key]
    filled = {*child.made_columns(entity.source, wanted, plan.settings)}
    for name in sorted(filled - {*child.table.columns}):
        yield f"{child.table.name}.{name}: the child's transform makes a column that is not there"
    yield from _unfilled(child.table.name, child.table.columns, filled | {child.parent, child.table.key})
    if child.table.columns[child.parent].dtype != wanted.dtype:
        yield f"{child.table.name}.{child.parent}: does not fit the key of {entity.target.name}"


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
        may_be_null = source.nullable and source.name != entity.mapping.key
        if not target.nullable and may_be_null and field.ref is None:
            yield f"{where}: must not be null, and the source may be"
    for unique in entity.unique:
        if not any(held.columns == unique.columns for held in entity.source.unique):
            yield f"{entity.target.name}.{', '.join(unique.columns)}: unique in the target, not in the source"
