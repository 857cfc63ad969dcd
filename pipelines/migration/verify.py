"""Verify: the target against what was migrated, row by row, without the source and without counts alone.

Every row of the target's tables is read back, hashed in the canonical encoding and compared with the
hash that the transformed row had. So a changed byte, two swapped values, a missing row and one too many
are each found and named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import polars as pl
import sqlalchemy as sa

from pipelines.migration.context import RunContext
from pipelines.migration.load import hashed_columns, tables_written
from pipelines.migration.manifest import StageOutcome
from pipelines.migration.plan import EntityPlan, Plan
from pipelines.migration.rowhash import row_hashes
from pipelines.migration.schema import Table
from pipelines.migration.target import TargetTransaction
from pipelines.migration.worktables import id_map, written_to

_FIRST = 100
_PAGE = 10_000


@dataclass
class _Comparison:
    """One table: how many rows match, and the first that do not."""

    matched: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("changed", "missing", "extra"), 0))
    differences: list[dict[str, Any]] = field(default_factory=list)

    def differ(self, kind: str, table: str, keys: pl.Series) -> None:
        self.counts[kind] += keys.len()
        room = max(_FIRST - len(self.differences), 0)
        self.differences += [{"table": table, "key": key, "kind": kind} for key in keys.head(room)]


def verify(run: RunContext) -> StageOutcome:
    """Compare the whole target; the outcome's facts say `ok`, counts, and the first differences."""
    run.require("verify", needs="load")
    with run.target.transaction() as transaction:
        tables = {table.name: _compare(run, transaction, table) for table in tables_written(run.plan)}
        accounting = {name: _account(run, transaction, entity) for name, entity in run.plan.entities.items()}
        orphans = _orphans(run.plan, transaction)
    differences = [item for compared in tables.values() for item in compared.differences]
    balanced = all(item["balanced"] for item in accounting.values())
    facts = {
        "ok": balanced and not differences and not any(orphans.values()),
        "tables": {name: {"matched": item.matched, **item.counts} for name, item in tables.items()},
        "accounting": accounting,
        "orphans": orphans,
        "differences": differences[:_FIRST],
    }
    return run.finish("verify", facts)


def _compare(run: RunContext, transaction: TargetTransaction, table: Table) -> _Comparison:
    expected = _expected(run, transaction, table)
    names = hashed_columns(_written(run.plan, table))
    columns, compared = [table.columns[name] for name in names], _Comparison()
    seen, after, done = [], None, 0
    assert table.key is not None
    while True:
        page = transaction.read(table, names, after=after, limit=_PAGE)
        keys = page[table.key].cast(pl.String).alias("key")
        found = pl.DataFrame([keys, row_hashes(page, columns).alias("found")])
        joined = found.join(expected, on="key", how="left", maintain_order="left")
        compared.differ("extra", table.name, joined.filter(pl.col("row_hash").is_null())["key"])
        changed = pl.col("row_hash") != pl.col("found")
        compared.differ("changed", table.name, joined.filter(changed)["key"])
        compared.matched += joined.filter(~changed).height
        seen.append(keys.to_frame())
        done += page.height
        run.progress("verify", table.name, min(done, expected.height), expected.height)
        if page.height < _PAGE:
            break
        after = page[table.key][-1]
    if any(e.policy != "fail" for e in run.plan.entities.values()):
        compared.counts["extra"] = 0
        compared.differences = [d for d in compared.differences if d["kind"] != "extra"]
    missing = expected.join(pl.concat(seen), on="key", how="anti", maintain_order="left")
    compared.differ("missing", table.name, missing["key"])
    return compared


def _written(plan: Plan, table: Table) -> list[str]:
    """The columns of a table that the load fills."""
    for entity in plan.entities.values():
        if entity.target.name == table.name:
            return entity.loaded_columns
        for child in entity.children.values():
            if child.table.name == table.name:
                return entity.child_columns(child, plan.settings)
    raise LookupError(table.name)


def _expected(run: RunContext, transaction: TargetTransaction, table: Table) -> pl.DataFrame:
    frames = [
        frame.filter(pl.col("row_hash").is_not_null()).select(pl.col("target_key").alias("key"), "row_hash")
        for frame in written_to(transaction.connection, run.migration_id, table.name)
    ]
    return pl.concat([pl.DataFrame(schema={"key": pl.String, "row_hash": pl.String}), *frames])


def _account(run: RunContext, transaction: TargetTransaction, entity: EntityPlan) -> dict[str, Any]:
    """Source rows - filtered - quarantined = ID map = rows in the target."""
    filtered = run.manifest.counts("transform")[entity.name]["filtered"]
    quarantined = run.manifest.counts("validate")[entity.name]["quarantined"]
    source = run.manifest.counts("extract")[entity.name]["in"]
    in_map = sum(
        frame.height
        for frame in id_map(transaction.connection, run.migration_id, entity.name, entity.target.name)
    )
    in_target = transaction.count(entity.target)
    return {
        "source": source,
        "filtered": filtered,
        "quarantined": quarantined,
        "id_map": in_map,
        "target": in_target,
        "balanced": source - filtered - quarantined == in_map
        and (entity.policy != "fail" or in_map == in_target),
    }


def _orphans(plan: Plan, transaction: TargetTransaction) -> dict[str, int]:
    """References that lead nowhere, for targets that do not check them themselves."""
    found = {}
    for entity in plan.entities.values():
        for name, spec in entity.fields.items():
            if spec.ref is not None:
                parent = plan.entities[spec.ref]
                count = _lost(transaction, entity.target.name, name, parent.target.name, parent.target_key)
                found[f"{entity.target.name}.{name}"] = count
        for child in entity.children.values():
            count = _lost(transaction, child.table.name, child.parent, entity.target.name, entity.target_key)
            found[f"{child.table.name}.{child.parent}"] = count
    return found


def _lost(transaction: TargetTransaction, table: str, column: str, parent: str, key: str) -> int:
    referring = sa.table(table, sa.column(column)).alias("referring")
    referred = sa.table(parent, sa.column(key)).alias("referred")
    lost = sa.select(sa.func.count()).select_from(
        referring.outerjoin(referred, referring.c[column] == referred.c[key])
    )
    condition = sa.and_(referring.c[column].is_not(None), referred.c[key].is_(None))
    return int(transaction.connection.scalar(lost.where(condition)) or 0)
