"""Invariants: what must hold between source and target whatever the mapping says.

A transform that makes children may have one: a function that derives anew, by the old system's own
rule and not by the transform, what the children must be. So a transform that is wrong in itself is
found, which comparing its output with what it loaded never would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import polars as pl

from pipelines.migration.context import RunContext
from pipelines.migration.errors import SourceError, StagedDataError
from pipelines.migration.keys import key_text, key_values
from pipelines.migration.plan import ChildPlan, EntityPlan
from pipelines.migration.source import Source
from pipelines.migration.target import TargetTransaction
from pipelines.migration.transforms import Settings
from pipelines.migration.worktables import id_map

_FIRST = 100
_PAGE = 5000

Invariant = Callable[[pl.DataFrame, pl.DataFrame, Settings], pl.Series]
"""Source rows (the child's columns and `_record`) and the children found (`_record` and their columns):
the `_record`s, as text, whose children are not what the old system derives."""

_invariants: dict[str, tuple[str, Invariant]] = {}


def register_invariant(transform: str, description: str) -> Callable[[Invariant], Invariant]:
    """Hold the children of a child transform to what a function says of them, at every verification."""

    def register(function: Invariant) -> Invariant:
        _invariants[transform] = (description, function)
        return function

    return register


def broken_invariants(
    run: RunContext, transaction: TargetTransaction, source: Source | None
) -> dict[str, dict[str, Any]]:
    """Each invariant of the mapping: how many records were checked and are broken, and the first ones.

    The source's rows are those that the run staged, or, once these are gone, those that it holds now;
    `checked` is None when it cannot be read any more.
    """
    found = {}
    for entity in run.plan.entities.values():
        for child in entity.children.values():
            name = entity.mapping.children[child.name].transform
            if name in _invariants:
                description, function = _invariants[name]
                result = _check(run, transaction, entity, child, function, source)
                found[f"{entity.name}.{child.name}"] = {"description": description, **result}
    return found


def _check(
    run: RunContext,
    transaction: TargetTransaction,
    entity: EntityPlan,
    child: ChildPlan,
    function: Invariant,
    source: Source | None,
) -> dict[str, Any]:
    records = _records(run, transaction, entity)
    checked, broken = 0, 0
    differences: list[dict[str, Any]] = []
    place = {"entity": entity.name, "table": child.table.name, "kind": "changed", "found_by": ["invariant"]}
    try:
        for frame in _source_rows(run, entity, child, source):
            for page in frame.join(records, on="_key", how="inner").iter_slices(_PAGE):
                wrong = function(page, _children(transaction, entity, child, page), run.plan.settings)
                checked, broken = checked + page.height, broken + wrong.len()
                columns = sorted(child.secret)
                differences += [
                    {**place, "key": key, "record": key, "columns": columns}
                    for key in wrong.head(_FIRST - len(differences))
                ]
    except SourceError:
        return {"checked": None, "broken": 0, "differences": []}
    return {"checked": checked, "broken": broken, "differences": differences}


def _records(run: RunContext, transaction: TargetTransaction, entity: EntityPlan) -> pl.DataFrame:
    """Source key to record, both as text. Held whole: about 100 bytes a record."""
    frames = id_map(transaction.connection, run.migration_id, entity.name, entity.target.name)
    renamed = [frame.rename({"source_key": "_key", "target_key": "_record"}) for frame in frames]
    return pl.concat([pl.DataFrame(schema={"_key": pl.String, "_record": pl.String}), *renamed])


def _source_rows(
    run: RunContext, entity: EntityPlan, child: ChildPlan, source: Source | None
) -> Iterator[pl.DataFrame]:
    wanted = [key_text(entity.source_key).alias("_key"), *map(pl.col, child.sources)]
    chunks = [chunk for attempt in run.attempts for chunk in attempt.staged["extract"][entity.name]]
    if all((run.folder / chunk.file).exists() for chunk in chunks) and not run.earlier:
        for chunk in chunks:
            try:
                yield run.read(chunk).select(wanted)
            except StagedDataError as error:
                raise SourceError(str(error)) from None
        return
    if source is None:
        raise SourceError("no source is given")
    names = tuple(sorted({*entity.mapping.key, *child.sources}))
    with source.snapshot() as snapshot:
        frames = snapshot.chunks(
            entity.source, key=entity.mapping.key, columns=names, rows=run.plan.mapping.chunk.rows
        )
        for frame in frames:
            yield frame.select(wanted)


def _children(
    transaction: TargetTransaction, entity: EntityPlan, child: ChildPlan, page: pl.DataFrame
) -> pl.DataFrame:
    """The children that the target holds of these records."""
    keys = key_values(entity.target_key, page["_record"])
    names = sorted({*child.table.columns})
    found = transaction.rows(child.table, names, of=child.parent, among=keys)
    record = key_text(child.table.pick(child.parent)).alias("_record")
    return found.drop("_ill_typed").with_columns(record)
