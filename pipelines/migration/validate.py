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
from pipelines.migration.eventframes import key_room
from pipelines.migration.keys import key_text, listed
from pipelines.migration.manifest import StageOutcome
from pipelines.migration.matching import match_existing
from pipelines.migration.plan import Check, EntityPlan
from pipelines.migration.records import is_unfit
from pipelines.migration.references import Parents, reference_checks, refers, with_references
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


def validate(run: RunContext) -> StageOutcome:
    """Part every entity's records into valid and quarantined ones."""
    run.require("validate", needs="transform")
    for stage in ("matched", "valid", "quarantine"):
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
    def is_matched_here(self) -> bool:
        return self.entity.policy != "fail" and self.entity.is_matched_late

    @property
    def chunks(self) -> list[Chunk]:
        return self.run.staged("matched" if self.is_matched_here else "transform", self.entity.name)

    def judge(self) -> None:
        """Find all violations: row by row, then across rows."""
        if self.is_matched_here:
            self._match()
        distinct = [*map(Distinct.under, self.entity.unique)]
        distinct.append(Distinct(listed(self.entity.mapping.key), [pl.col("_key")]))
        for place, chunk in enumerate(self.chunks):
            self.run.refuse_when_stopped()
            frame = self._resolved(chunk)
            checks = [*self._row_checks(frame), *self._own_checks()]
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
            yield _without(self._resolved(chunk), violations)

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
                frame = self._resolved(chunk)
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
        dtype = self.entity.record_dtype
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
            self.run.read(chunk).select(key_text(self.entity.source_key).alias("_key")).to_series()
            for chunk in self.run.staged("extract", self.entity.name)
        ]
        gone = wanted.filter(~wanted.is_in(pl.concat(extracted).implode())) if extracted else wanted
        if gone.len():
            texts = {
                "stage": "extract",
                "rule": "gone",
                "column": listed(self.entity.mapping.key),
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

    def _resolved(self, chunk: Chunk) -> pl.DataFrame:
        """A chunk with its references."""
        frame = self.run.read(chunk)
        if self.is_matched_here:
            return frame
        return with_references(self.run.plan, self.entity, self.parents, frame)

    def _match(self) -> None:
        """Find out, now that references are known, which records are in the target already, and stage it:
        that is decided once."""
        self.run.manifest.staged["matched"][self.entity.name] = []
        for chunk in self.run.staged("transform", self.entity.name):
            self.run.refuse_when_stopped()
            frame = with_references(self.run.plan, self.entity, self.parents, self.run.read(chunk))
            with self.run.target.transaction() as transaction:
                frame = match_existing(transaction, self.entity, frame)
            self.run.write("matched", self.entity.name, chunk.number, frame)

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
        yield from (("validate", check) for check in reference_checks(self.entity))
        yield from (("validate", check) for child in self.entity.children.values() for check in child.checks)

    def _field_checks(self, failures: list[Check]) -> Iterator[Check]:
        """A value that could not be read, transformed or looked up is null for that reason, and not missing
        as well."""
        for name, spec in self.entity.fields.items():
            lost = [
                pl.col("_failed").list.contains(number)
                for number, check in enumerate(failures)
                if check.column == name
            ]
            lost += map(_ill_typed, spec.sources)
            if spec.ref is not None and spec.on_missing == "quarantine":
                lost.append(refers(spec))
            for check in spec.checks:
                is_doubled = lost and check.rule == "required"
                yield replace(check, broken=check.broken & ~pl.any_horizontal(lost)) if is_doubled else check

    def _own_checks(self) -> Iterator[tuple[str, Check]]:
        """A key of several columns stands as it is in the name of its record's stream. What a retry would
        match with a record that the run itself loaded is no record to update."""
        if len(self.entity.target_key) > 1 and self.entity.mapping.event is not None:
            room = key_room(self.run, self.entity)
            message = (
                f"makes no name of a stream: it is longer than {room} characters, or has unprintable ones"
            )
            broken = is_unfit(pl.col("_record"), room)
            yield "validate", Check("stream", listed(self.entity.target.key), message, broken)
        if loaded := self._loaded_before():
            own = pl.col("_record").is_in(pl.concat(loaded)["_record"].implode())
            name = listed(self.entity.mapping.natural_key)
            message = "is taken by another record of this run"
            yield "validate", Check("unique", name, message, pl.col("_existing") & own)

    def _child_violations(self, place: int, frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
        """What the target's columns say against a record's children counts against the record."""
        for child in self.entity.children.values():
            made = self._children(child.name, place, frame)
            checks = [("validate", check) for check in child.target_checks(made.columns)]
            yield _long_form(made, checks).unique(maintain_order=True)

    def _stage_children(self, place: int, valid: pl.DataFrame, next_key: dict[str, int]) -> None:
        for name in self.entity.children:
            kept = self._children(name, place, valid).drop("_key")
            numbers = pl.int_range(next_key[name], next_key[name] + kept.height, dtype=pl.Int64)
            number, numbered = self.chunks[place].number, kept.with_columns(numbers.alias("_child"))
            self.run.write("valid", f"{self.entity.name}.{name}", number, numbered)
            next_key[name] += kept.height

    def _children(self, name: str, place: int, frame: pl.DataFrame) -> pl.DataFrame:
        """The children that were made for the records of a frame, with the keys that these have now."""
        made = self.run.read(self.run.staged("transform", f"{self.entity.name}.{name}")[place])
        made_for = "_key" if self.entity.has_referring_key else "_record"
        made = made.rename({"_record": made_for})
        keyed = made.join(frame.select("_key", "_record"), on=made_for, how="inner", maintain_order="left")
        return keyed.select("_record", cs.starts_with("t:"), "_key")


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
