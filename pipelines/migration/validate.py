"""Validate: every record against its rules; the broken ones go to quarantine, with their children.

First each row by itself (types, transforms, rules, the target's own limits), then references to
parents that were quarantined or never were, then uniqueness among what is left, under the target's
collation: of records that share a value none is taken, for nobody can tell whose it is. A message
never holds the value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl
import polars.selectors as cs

from pipelines.migration.attempts import taken_in
from pipelines.migration.chunks import Chunk, remove_stage
from pipelines.migration.context import RunContext, check_accounting
from pipelines.migration.errors import ThresholdExceededError
from pipelines.migration.manifest import StageOutcome
from pipelines.migration.plan import Check, EntityPlan
from pipelines.migration.rules import broken_mask, rule_message
from pipelines.migration.uniqueness import Distinct, shared
from pipelines.migration.worktables import id_map

_SAMPLES = 20
_INNER = cs.by_name("_ill_typed", "_failed") | cs.starts_with("_there:")
_VIOLATIONS = {
    "_key": pl.String,
    "stage": pl.String,
    "rule": pl.String,
    "column": pl.String,
    "message": pl.String,
}
Parents = dict[str, pl.DataFrame]


def validate(run: RunContext) -> StageOutcome:
    """Part every entity's records into valid and quarantined ones."""
    run.require("validate", needs="transform")
    for stage in ("valid", "quarantine"):
        remove_stage(run.folder, stage)
        run.begin_stage(stage)
    parents: Parents = {}
    counts, errors = {}, []
    for name, entity in run.plan.entities.items():
        judged = _Judgement(run, entity, parents)
        judged.judge()
        counts[name] = judged.stage_valid()
        errors += judged.grouped_errors()
    check_accounting("validate", counts)
    facts: dict[str, Any] = {
        "total_records": sum(count["in"] for count in counts.values()),
        "valid_records": sum(count["out"] for count in counts.values()),
        "invalid_records": sum(count["quarantined"] for count in counts.values()),
        "validation_errors": errors,
        "validation_stats": {"entities": counts},
    }
    return run.finish("validate", facts)


def refuse_excess(run: RunContext, outcome: StageOutcome) -> None:
    """Raise ThresholdExceededError when an entity has more in quarantine than the mapping allows."""
    allowed = run.plan.mapping.thresholds.max_quarantine_ratio
    for entity, count in outcome.facts["validation_stats"]["entities"].items():
        total = run.attempts[0].counts("extract")[entity]["in"]
        ratio = count["quarantined"] / total if total else 0.0
        if ratio > allowed:
            raise ThresholdExceededError(entity, ratio=ratio, allowed=allowed)


def refusals_allowed(run: RunContext, entity: str) -> int:
    """How many records of an entity the target may refuse before the mapping's threshold is reached."""
    total = run.attempts[0].counts("extract")[entity]["in"]
    quarantined = run.manifest.counts("validate")[entity]["quarantined"]
    return max(int(total * run.plan.mapping.thresholds.max_quarantine_ratio) - quarantined, 0)


@dataclass
class _Judgement:
    """One entity under judgement: what is wrong with which records of which chunk."""

    run: RunContext
    entity: EntityPlan
    parents: Parents
    found: list[pl.DataFrame] = field(default_factory=list)

    @property
    def chunks(self) -> list[Chunk]:
        return self.run.staged("transform", self.entity.name)

    def judge(self) -> None:
        """Find all violations: row by row, then across rows."""
        distinct = [*map(Distinct.under, self.entity.unique)]
        distinct.append(Distinct(self.entity.mapping.key, [pl.col("_key")]))
        for place, chunk in enumerate(self.chunks):
            self.run.refuse_when_stopped()
            frame = self._with_references(self.run.read(chunk))
            checks = [*self._row_checks(frame), *self._reference_checks(), *self._own_checks()]
            violations = _long_form(frame, checks)
            violations = pl.concat([violations, *self._child_violations(place, frame)])
            self.found.append(violations)
            accepted = _without(frame, violations)
            for one in distinct:
                one.add(accepted)
        for one, rows in zip(distinct, shared(distinct, self._accepted()), strict=True):
            for violations in _by_chunk(rows, one.column):
                place = violations.item(0, "_place")
                self.found[place] = pl.concat([self.found[place], violations.select(*_VIOLATIONS)])

    def _accepted(self) -> Iterator[pl.DataFrame]:
        """The records of each chunk in which nothing is wrong by themselves."""
        for chunk, violations in zip(self.chunks, [*self.found], strict=True):
            yield _without(self._with_references(self.run.read(chunk)), violations)

    def stage_valid(self) -> dict[str, int]:
        """Write the valid records, their children and the quarantine of each chunk."""
        run, name, keys = self.run, self.entity.name, self._loaded_before()
        children = {name: run.keys_given(child.table) + 1 for name, child in self.entity.children.items()}
        for stage, names in (("valid", [name, *(f"{name}.{c}" for c in children)]), ("quarantine", [name])):
            run.manifest.staged[stage] |= {item: [] for item in names}
        total, done, quarantined = sum(chunk.rows for chunk in self.chunks), 0, 0
        others = run.plan.entities.values()
        is_parent = any(field.ref == name for other in others for field in other.fields.values())
        as_transformed = not any(field.ref for field in self.entity.fields.values())
        for place, (chunk, violations) in enumerate(zip(self.chunks, self.found, strict=True)):
            same, rows = as_transformed and violations.is_empty(), chunk.rows
            if same:
                run.link("valid", name, chunk)
            if is_parent or children or not same:
                frame = self._with_references(run.read(chunk))
                valid = _without(frame, violations)
                rows = valid.height
                if not same:
                    run.write("valid", name, chunk.number, valid.drop(_INNER))
                self._stage_children(place, valid, children)
                if is_parent:
                    accepted = pl.col("_key").is_in(valid["_key"].implode())
                    keys.append(frame.select("_key", pl.when(accepted).then("_record").alias("_record")))
            run.write("quarantine", name, chunk.number, violations)
            done, quarantined = done + chunk.rows, quarantined + chunk.rows - rows
            run.progress("validate", name, done, total)
        self._stage_gone()
        self.parents[name] = (
            pl.concat(keys) if keys else pl.DataFrame(schema={"_key": pl.String, "_record": pl.Int64})
        )
        return {"in": total, "out": total - quarantined, "quarantined": quarantined, "filtered": 0}

    def _loaded_before(self) -> list[pl.DataFrame]:
        """The keys of the records that earlier attempts loaded."""
        if self.run.attempt == 1:
            return []
        dtype = self.entity.target.columns[self.entity.target_key].dtype
        with self.run.target.transaction() as transaction:
            frames = id_map(
                transaction.connection, self.run.migration_id, self.entity.name, self.entity.target.name
            )
            return [
                frame.select(
                    pl.col("source_key").alias("_key"), pl.col("target_key").cast(dtype).alias("_record")
                )
                for frame in frames
            ]

    def _stage_gone(self) -> None:
        """A record that a retry wanted and the source no longer has stays in quarantine."""
        wanted = taken_in(self.run, self.entity.name)
        if wanted is None:
            return
        extracted = [
            self.run.read(chunk)[self.entity.mapping.key].cast(pl.String).alias("_key")
            for chunk in self.run.staged("extract", self.entity.name)
        ]
        gone = wanted.filter(~wanted.is_in(pl.concat(extracted).implode())) if extracted else wanted
        if gone.len():
            texts = {
                "stage": "extract",
                "rule": "gone",
                "column": self.entity.mapping.key,
                "message": "is not in the source any more",
            }
            frame = gone.to_frame().with_columns(pl.lit(text).alias(name) for name, text in texts.items())
            self.run.write("quarantine", self.entity.name, self.run.first_chunk + 999_999, frame)

    def grouped_errors(self) -> list[dict[str, Any]]:
        """The violations by rule: how many, and the keys of the first twenty."""
        if not self.found:
            return []
        grouped = pl.concat(self.found).group_by("stage", "rule", "column", "message", maintain_order=True)
        counted = grouped.agg(pl.len().alias("count"), pl.col("_key").head(_SAMPLES).alias("samples"))
        return [{"entity": self.entity.name, **row} for row in counted.to_dicts()]

    def _with_references(self, frame: pl.DataFrame) -> pl.DataFrame:
        """References as the new keys of the parents that were accepted; null where there is none."""
        for name, spec in self.entity.fields.items():
            if spec.ref is None:
                continue
            lookup = self.parents[spec.ref].rename({"_key": "_ref", "_record": "_new"})
            lookup = lookup.with_columns(pl.lit(value=True).alias(f"_there:{name}"))
            joined = frame.with_columns(pl.col(f"s:{spec.sources[0]}").cast(pl.String).alias("_ref")).join(
                lookup, on="_ref", how="left", maintain_order="left"
            )
            frame = joined.with_columns(pl.col("_new").alias(f"t:{name}")).drop("_ref", "_new")
        return frame

    def _row_checks(self, frame: pl.DataFrame) -> Iterator[tuple[str, Check]]:
        for name in self.entity.columns:
            column = self.entity.source.columns[name]
            message = f"is not of the column's type {column.type_name}"
            yield "extract", Check("type", name, message, _ill_typed(name))
        for name, dtype in frame.schema.items():
            implied = {pl.String(): "no_nul", pl.Float64(): "finite"}.get(dtype)
            if name.startswith("s:") and implied:
                broken = broken_mask(implied, None, pl.col(name))
                yield "extract", Check(implied, name[2:], rule_message(implied, None), broken)
        failures = [check for spec in self.entity.fields.values() for check in spec.failures]
        for number, check in enumerate(failures):
            failed = pl.col("_failed").list.contains(number)
            yield "transform", Check(check.rule, check.column, check.message, failed)
        yield from (("validate", check) for check in self._field_checks(failures))
        yield from (("validate", check) for child in self.entity.children.values() for check in child.checks)

    def _field_checks(self, failures: list[Check]) -> Iterator[Check]:
        """A value that could not be read or transformed is null for that reason, and not missing as well."""
        for name, spec in self.entity.fields.items():
            lost = [
                pl.col("_failed").list.contains(number)
                for number, check in enumerate(failures)
                if check.column == name
            ]
            lost += map(_ill_typed, spec.sources)
            for check in spec.checks:
                is_doubled = lost and check.rule == "required"
                yield replace(check, broken=check.broken & ~pl.any_horizontal(lost)) if is_doubled else check

    def _reference_checks(self) -> Iterator[tuple[str, Check]]:
        for name, spec in self.entity.fields.items():
            if spec.ref is not None and spec.on_missing == "quarantine":
                missing = pl.col(f"s:{spec.sources[0]}").is_not_null() & pl.col(f"t:{name}").is_null()
                known = pl.col(f"_there:{name}").fill_null(value=False)
                message = f"refers to a record of {spec.ref} that is not there"
                yield "validate", Check("reference", name, message, missing & ~known)
                message = f"refers to a record of {spec.ref} that is in quarantine"
                yield "validate", Check("parent", name, message, missing & known)

    def _own_checks(self) -> Iterator[tuple[str, Check]]:
        """What a retry would match with a record that the run itself loaded is no record to update."""
        if loaded := self._loaded_before():
            own = pl.col("_record").is_in(pl.concat(loaded)["_record"].implode())
            name = self.entity.mapping.natural_key
            message = "is taken by another record of this run"
            yield "validate", Check("unique", name, message, pl.col("_existing") & own)

    def _child_violations(self, place: int, frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
        """What the target's columns say against a record's children counts against the record."""
        for child in self.entity.children.values():
            made = self.run.read(self.run.staged("transform", f"{self.entity.name}.{child.name}")[place])
            keyed = made.join(
                frame.select("_key", "_record"), on="_record", how="inner", maintain_order="left"
            )
            checks = [("validate", check) for check in child.target_checks(made.columns)]
            yield _long_form(keyed, checks).unique(maintain_order=True)

    def _stage_children(self, place: int, valid: pl.DataFrame, next_key: dict[str, int]) -> None:
        for name in self.entity.children:
            chunk = self.run.staged("transform", f"{self.entity.name}.{name}")[place]
            made = self.run.read(chunk)
            kept = made.join(valid.select("_record"), on="_record", how="semi", maintain_order="left")
            numbers = pl.int_range(next_key[name], next_key[name] + kept.height, dtype=pl.Int64)
            self.run.write(
                "valid",
                f"{self.entity.name}.{name}",
                chunk.number,
                kept.with_columns(numbers.alias("_child")),
            )
            next_key[name] += kept.height


def _ill_typed(column: str) -> pl.Expr:
    return pl.col("_ill_typed").str.split(",").list.contains(column).fill_null(value=False)


def _without(frame: pl.DataFrame, violations: pl.DataFrame) -> pl.DataFrame:
    return frame.join(violations.select("_key"), on="_key", how="anti", maintain_order="left")


def _long_form(frame: pl.DataFrame, checks: list[tuple[str, Check]]) -> pl.DataFrame:
    """One row a violation; all masks are computed together, in one pass."""
    masks = frame.select(check.broken.alias(str(number)) for number, (_, check) in enumerate(checks))
    found = [pl.DataFrame(schema=_VIOLATIONS)]
    for number, (stage, check) in enumerate(checks):
        broken = masks[str(number)]
        if broken.any():
            texts = {"stage": stage, "rule": check.rule, "column": check.column, "message": check.message}
            keys = frame.filter(broken).select("_key")
            found.append(keys.with_columns(pl.lit(text).alias(name) for name, text in texts.items()))
    return pl.concat(found)


def _by_chunk(rows: pl.DataFrame, column: str) -> list[pl.DataFrame]:
    """The violations of records that share what must be distinct, a frame for each chunk that has some."""
    texts = {"stage": "validate", "rule": "unique", "column": column, "message": rule_message("unique", None)}
    told = rows.with_columns(pl.lit(text).alias(name) for name, text in texts.items())
    return told.partition_by("_place", maintain_order=True) if told.height else []
