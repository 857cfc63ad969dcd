"""References: the new keys of a record's parents, once it is known which of them were accepted."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from pipelines.migration.keys import key_frame, key_text, key_value
from pipelines.migration.plan import Check, EntityPlan, FieldPlan, Plan

Parents = dict[str, pl.DataFrame]
"""By entity: `_key` of every record that was judged or loaded before, and `_record`, null when it was not
accepted."""


def with_references(plan: Plan, entity: EntityPlan, parents: Parents, frame: pl.DataFrame) -> pl.DataFrame:
    """References as the new keys of the parents that were accepted, null where there is none, with marks
    `_there:field` for parents that were judged; and the record's own key, where references are part of it."""
    for name, spec in entity.fields.items():
        if spec.ref is None:
            continue
        lookup = parents[spec.ref].rename({"_key": "_ref", "_record": "_new"})
        lookup = lookup.with_columns(pl.lit(value=True).alias(f"_there:{name}"))
        sources = entity.source.pick(spec.sources)
        joined = frame.with_columns(key_text(sources, prefix="s:").alias("_ref")).join(
            lookup, on="_ref", how="left", maintain_order="left"
        )
        key, new = plan.entities[spec.ref].target_key, joined["_new"]
        if len(key) > 1:
            new = key_frame(key, new)[spec.ref_column]
        frame = joined.with_columns(new.alias(f"t:{name}")).drop("_ref", "_new")
    if entity.has_referring_key:
        frame = frame.with_columns(key_value(entity.target_key, prefix="t:").alias("_record"))
    return frame


def refers(spec: FieldPlan) -> pl.Expr:
    """Whether a record refers to any other by this field."""
    return pl.all_horizontal(pl.col(f"s:{source}").is_not_null() for source in spec.sources)


def reference_checks(entity: EntityPlan) -> Iterator[Check]:
    """What can be wrong with references: the parent was quarantined, or never was."""
    for name, spec in entity.fields.items():
        if spec.ref is not None and spec.on_missing == "quarantine":
            missing = refers(spec) & pl.col(f"t:{name}").is_null()
            known = pl.col(f"_there:{name}").fill_null(value=False)
            message = f"refers to a record of {spec.ref} that is not there"
            yield Check("reference", name, message, missing & ~known)
            message = f"refers to a record of {spec.ref} that is in quarantine"
            yield Check("parent", name, message, missing & known)
