"""Transform: the extracted rows in the target's form, vectorised; what could not be made is marked.

The new key of a record is the one its fields give, else its number in key order above the highest key
that the target held, so it never depends on the target's sequence; a record that the target holds
already keeps the key that it has there (see `matching`). Where a reference is part of the new key, that key
is known in the validate stage, and the source's stands in until then. Rows that the mapping's `where` leaves
out are counted as filtered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import polars as pl

from pipelines.migration.ahead import ahead
from pipelines.migration.chunks import Chunk, remove_stage
from pipelines.migration.context import RunContext, check_accounting
from pipelines.migration.keys import key_text, key_value
from pipelines.migration.manifest import StageOutcome
from pipelines.migration.matching import match_existing
from pipelines.migration.plan import ChildPlan, EntityPlan, FieldPlan
from pipelines.migration.transforms import Conversion

Conversions = Counter[Conversion]


def transform(run: RunContext) -> StageOutcome:
    """Transform every staged chunk."""
    run.require("transform", needs="extract")
    remove_stage(run.folder, "transform")
    run.begin_stage("transform")
    conversions = _declared(run)
    counts = {name: _transform_entity(run, entity, conversions) for name, entity in run.plan.entities.items()}
    check_accounting("transform", counts)
    facts: dict[str, Any] = {
        "input_count": sum(count["in"] for count in counts.values()),
        "output_count": sum(count["out"] for count in counts.values()),
        "transformation_stats": {
            "entities": counts,
            "conversions": [
                {
                    "kind": pair.kind,
                    "source_format": pair.source_format,
                    "target_format": pair.target_format,
                    "count": count,
                }
                for pair, count in conversions.items()
            ],
        },
    }
    return run.finish("transform", facts)


def _declared(run: RunContext) -> Conversions:
    """Every format pair of the mapping at zero, in its order: a pair that met no value is told too."""
    pairs: Conversions = Counter()
    for entity in run.plan.entities.values():
        pairs.update({pair: 0 for field in entity.fields.values() for pair, _ in field.conversions})
        pairs.update({pair: 0 for child in entity.children.values() for pair in child.conversions})
    return pairs


def _transform_entity(run: RunContext, entity: EntityPlan, conversions: Conversions) -> dict[str, int]:
    chunks = run.staged("extract", entity.name)
    total, done, kept = sum(chunk.rows for chunk in chunks), 0, 0
    first = run.row.first_keys.get(entity.target.name, 0) + run.keys_given(entity.target)
    for name in (entity.name, *(f"{entity.name}.{child}" for child in entity.children)):
        run.manifest.staged["transform"][name] = []
    for chunk, frame, families in ahead(_transformed(run, entity, chunks, first, conversions)):
        run.write("transform", entity.name, chunk.number, frame)
        for name, family in families.items():
            run.write("transform", f"{entity.name}.{name}", chunk.number, family)
        done, kept = done + chunk.rows, kept + frame.height
        run.progress("transform", entity.name, done, total)
    return {"in": total, "out": kept, "quarantined": 0, "filtered": total - kept}


def _transformed(
    run: RunContext, entity: EntityPlan, chunks: list[Chunk], first: int, conversions: Conversions
) -> Iterator[tuple[Chunk, pl.DataFrame, dict[str, pl.DataFrame]]]:
    """Each chunk with its records and their children in the target's form."""
    for chunk in chunks:
        source = _wanted(run.read(chunk), entity)
        frame = transform_frame(source, entity, first_record=first + 1)
        if entity.policy != "fail" and not entity.is_matched_late:
            with run.target.transaction() as transaction:
                frame = match_existing(transaction, entity, frame)
        _count_conversions(source, entity, conversions)
        families = {
            child.name: _make_children(run, child, frame, conversions) for child in entity.children.values()
        }
        first += frame.height
        yield chunk, frame, families


def _wanted(frame: pl.DataFrame, entity: EntityPlan) -> pl.DataFrame:
    """The rows that `where` takes; an ill-typed row is never left out unseen, but quarantined."""
    if entity.where is None:
        return frame
    return frame.filter(entity.where.fill_null(value=False) | pl.col("_ill_typed").is_not_null())


def transform_frame(source: pl.DataFrame, entity: EntityPlan, *, first_record: int) -> pl.DataFrame:
    """Source rows beside target rows, with keys and with the numbers of the failed transforms."""
    failures = [check for field in entity.fields.values() for check in field.failures]
    marks = [pl.when(check.broken).then(pl.lit(number, pl.Int32)) for number, check in enumerate(failures)]
    failed = pl.concat_list(marks).list.drop_nulls() if marks else pl.lit([], pl.List(pl.Int32))
    ordinal = pl.int_range(first_record, first_record + source.height, dtype=pl.Int64)
    frame = source.select(
        key_text(entity.source_key).alias("_key"),
        pl.lit(value=False).alias("_existing"),
        pl.col("_ill_typed"),
        failed.alias("_failed"),
        *(pl.col(name).alias(f"s:{name}") for name in entity.columns),
        *(_target_value(field).alias(f"t:{name}") for name, field in entity.fields.items()),
    )
    record = ordinal
    if entity.has_referring_key:
        record = pl.col("_key")
    elif {*entity.target.key} <= {*entity.fields}:
        record = key_value(entity.target_key, prefix="t:")
    return frame.insert_column(1, frame.select(record.alias("_record")).to_series())


def _target_value(field: FieldPlan) -> pl.Expr:
    """A reference is looked up when its parents are known, in the validate stage."""
    return field.value if field.ref else field.value.cast(field.column.dtype)


def _count_conversions(source: pl.DataFrame, entity: EntityPlan, conversions: Conversions) -> None:
    pairs = [pair for field in entity.fields.values() for pair in field.conversions]
    if pairs:
        counts = source.select(count.alias(str(n)) for n, (_, count) in enumerate(pairs)).row(0)
        for (pair, _), count in zip(pairs, counts, strict=True):
            conversions[pair] += count


def _make_children(
    run: RunContext, child: ChildPlan, frame: pl.DataFrame, conversions: Conversions
) -> pl.DataFrame:
    inputs = frame.select("_record", *(pl.col(f"s:{name}").alias(name) for name in child.sources))
    made = child.make(inputs, run.plan.settings)
    for pair in child.conversions:
        conversions[pair] += made["_record"].n_unique()
    columns = [name for name in made.columns if name != "_record"]
    return made.select("_record", *_child_values(child, columns))


def _child_values(child: ChildPlan, columns: list[str]) -> Iterator[pl.Expr]:
    for name in columns:
        yield pl.col(name).cast(child.table.columns[name].dtype).alias(f"t:{name}")
