"""Verify: the target against what was migrated, row by row, and against what the events tell.

Nothing is taken on trust: every row of the target is read back and hashed in the canonical encoding. The
hashes are compared in buckets with those that the transformed rows had when they were loaded; the
target's records with those that the run's events tell; what the old system would derive with what the
new one holds; references, sequences and the accounting with what they must be. A difference names the
entity, the table, the key, the record and, where it can be known, the columns.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import sqlalchemy as sa

from pipelines.migration.attempts import left_in_quarantine
from pipelines.migration.buckets import Compared
from pipelines.migration.comparison import FIRST, TableCompared, Writes, compare_entity, tables_of
from pipelines.migration.context import RunContext
from pipelines.migration.invariants import broken_invariants
from pipelines.migration.keys import key_text, key_values, listed
from pipelines.migration.load import tables_written
from pipelines.migration.manifest import StageOutcome
from pipelines.migration.naming import name_columns
from pipelines.migration.plan import EntityPlan, Plan
from pipelines.migration.schema import Table
from pipelines.migration.source import Source
from pipelines.migration.standing import standing
from pipelines.migration.target import TargetTransaction
from pipelines.migration.told import Told
from pipelines.migration.worktables import id_map, written_to

Difference = dict[str, Any]


@dataclass
class _Findings:
    differences: list[Difference] = field(default_factory=list)

    def add(self, check: str, entity: str, table: str, compared: Compared) -> None:
        for kind, key in compared.rows:
            place = {"entity": entity, "table": table, "key": key, "record": None, "kind": kind}
            self.differences.append({**place, "columns": [], "found_by": [check]})

    def merge(self, others: Iterable[Difference]) -> None:
        """Add what another check found, once: to the same record's differing rows, where there are any."""
        for other in others:
            same = [
                one
                for one in self.differences
                if (one["table"], one["record"]) == (other["table"], other["record"])
            ]
            for one in same:
                one["found_by"] = sorted({*one["found_by"], *other["found_by"]})
            if not same:
                self.differences.append(other)


def verify(run: RunContext, source: Source | None, told: Told) -> StageOutcome:
    """Compare the whole target; the outcome's facts say `ok`, counts, and the first differences.

    Without a source nothing is derived anew, and the facts say so. After a rollback: whether what the
    run had written is gone.
    """
    if run.row.status in ("rolling_back", "rolled_back"):
        left = standing_rows(run)
        ok = not any(item["standing"] for item in left["tables"].values())
        return run.keep("undone", {"ok": ok, **left, "differences": []})
    run.require("verify", needs="load")
    began = time.monotonic()
    findings = _Findings()
    with run.target.transaction() as transaction:
        tables: dict[str, dict[str, Any]] = {}
        events: dict[str, dict[str, Compared]] = {}
        for name, entity in run.plan.entities.items():
            compared = compare_entity(run, transaction, entity, told)
            tables |= {table: _table_facts(one) for table, one in compared.items()}
            events[name] = {table: one.events for table, one in compared.items() if one.events is not None}
            for table, one in compared.items():
                findings.add("rows", name, table, one.rows)
        _know_records(run, transaction, findings.differences)
        findings.merge(_of_events(events))
        name_columns(run, transaction, told, findings.differences)
        invariants = broken_invariants(run, transaction, source)
        facts: dict[str, Any] = {
            "tables": tables,
            "events": {name: _counts(compared) for name, compared in events.items()},
            "accounting": {name: _account(run, transaction, e) for name, e in run.plan.entities.items()},
            "orphans": _orphans(run.plan, transaction),
            "sequences": _sequences(run.plan, transaction),
            "invariants": invariants,
        }
    findings.merge(item for found in invariants.values() for item in found.pop("differences"))
    ok = not findings.differences and not any(facts["orphans"].values())
    ok = ok and all(item["balanced"] for item in facts["accounting"].values())
    ok = ok and all(item["ok"] for item in facts["sequences"].values())
    facts["differences"] = findings.differences[: 4 * FIRST]
    facts["seconds"] = round(time.monotonic() - began, 3)
    return run.keep("verify", {"ok": ok, **facts})


def _written(plan: Plan) -> Iterator[Writes]:
    for entity in plan.entities.values():
        yield from tables_of(plan, entity)


def _table_facts(compared: TableCompared) -> dict[str, Any]:
    rows = compared.rows
    return {"matched": rows.matched, **rows.counts, "others": compared.others, "unequal": rows.unequal}


def _counts(compared: dict[str, Compared]) -> dict[str, Any]:
    return {
        part: {"matched": item.matched, **item.counts, "unequal": item.unequal}
        for part, item in compared.items()
    }


def _know_records(run: RunContext, transaction: TargetTransaction, differences: list[Difference]) -> None:
    """Name the record that each differing row belongs to."""
    by_table = {item.table.name: item for item in _written(run.plan)}
    for table, item in by_table.items():
        mine = [one for one in differences if one["table"] == table]
        if not mine:
            continue
        keys = pl.Series([one["key"] for one in mine], dtype=pl.String).implode()
        known: dict[str, str] = {}
        for frame in written_to(transaction.connection, run.migration_id, table):
            picked = frame.filter(pl.col("target_key").is_in(keys)).select("target_key", "record_key")
            known |= dict(picked.iter_rows())
        strange = [one["key"] for one in mine if one["key"] not in known]
        if item.child is not None and strange:
            known |= _parents(transaction, item.table, item.child.parent, strange)
        for one in mine:
            one["record"] = known.get(one["key"], one["key"])


def _parents(
    transaction: TargetTransaction, table: Table, columns: tuple[str, ...], keys: list[str]
) -> dict[str, str]:
    """The parents of children that the run did not write."""
    rows = transaction.rows(table, [*table.key, *columns], of=table.key, among=_keys(table, keys))
    parents = key_text(table.pick(columns)).alias("parent")
    return dict(rows.select(key_text(table.key_columns).alias("key"), parents).iter_rows())


def _of_events(events: dict[str, dict[str, Compared]]) -> Iterator[Difference]:
    for entity, parts in events.items():
        for table, compared in parts.items():
            for kind, key in compared.rows:
                place = {"entity": entity, "table": table, "key": key, "record": key, "kind": kind}
                yield {**place, "columns": [], "found_by": ["events"]}


def _account(run: RunContext, transaction: TargetTransaction, entity: EntityPlan) -> dict[str, Any]:
    """Source rows - filtered - quarantined = ID map = rows in the target, where it was empty before."""
    filtered = sum(
        attempt.counts(stage)[entity.name]["filtered"]
        for attempt in run.attempts
        for stage in ("transform", "validate")
    )
    left = left_in_quarantine(run.manifest, run.target, run.migration_id, run.attempt, entity.name)
    source = run.attempts[0].counts("extract")[entity.name]["in"]
    frames = id_map(transaction.connection, run.migration_id, entity.name, entity.target.name)
    mapped, in_target = sum(frame.height for frame in frames), transaction.count(entity.target)
    here = in_target if entity.policy == "fail" else mapped
    return {
        "source": source,
        "filtered": filtered,
        "quarantined": len(left),
        "id_map": mapped,
        "target": in_target,
        "balanced": source - filtered - len(left) == mapped == here,
    }


def _orphans(plan: Plan, transaction: TargetTransaction) -> dict[str, int]:
    """References that lead nowhere, for targets that do not check them themselves."""
    found = {}
    for entity in plan.entities.values():
        references: dict[tuple[str, tuple[str, ...]], dict[str, str]] = {}
        for name, spec in entity.fields.items():
            if spec.ref is not None:
                references.setdefault((spec.ref, spec.sources), {})[name] = spec.ref_column
        for (parent, _), columns in references.items():
            count = _lost(transaction, entity.target.name, columns, plan.entities[parent].target.name)
            found[f"{entity.target.name}.{listed(columns)}"] = count
        for child in entity.children.values():
            columns = dict(zip(child.parent, entity.target.key, strict=True))
            count = _lost(transaction, child.table.name, columns, entity.target.name)
            found[f"{child.table.name}.{listed(child.parent)}"] = count
    return found


def _lost(transaction: TargetTransaction, table: str, columns: dict[str, str], parent: str) -> int:
    """How many rows refer, by these columns to those of a parent, to none."""
    referring = sa.table(table, *map(sa.column, columns)).alias("referring")
    referred = sa.table(parent, *map(sa.column, columns.values())).alias("referred")
    same = sa.and_(*(referring.c[own] == referred.c[other] for own, other in columns.items()))
    lost = sa.select(sa.func.count()).select_from(referring.outerjoin(referred, same))
    refers = (referring.c[name].is_not(None) for name in columns)
    nowhere = referred.c[next(iter(columns.values()))].is_(None)
    return int(transaction.connection.scalar(lost.where(sa.and_(*refers, nowhere))) or 0)


def _sequences(plan: Plan, transaction: TargetTransaction) -> dict[str, dict[str, Any]]:
    """Whether the key that each sequence gives next is above every key that there is."""
    found = {}
    for table in tables_written(plan):
        following = transaction.next_key(table)
        if following is None:
            continue
        highest = transaction.highest_key(table)
        found[table.name] = {"next": following, "highest": highest, "ok": following > highest}
    return found


def standing_rows(run: RunContext) -> dict[str, Any]:
    """For each table: the rows that the run wrote, those that still stand as it left them, and all rows."""
    tables: dict[str, dict[str, int]] = {}
    with run.target.transaction() as transaction:
        for item in _written(run.plan):
            stands = wrote = 0
            for frame in written_to(transaction.connection, run.migration_id, item.table.name):
                mine = frame.filter(pl.col("op").is_in(["insert", "update"]))
                stands += sum(standing(transaction, item.table, mine).values())
                wrote += mine.height
            tables[item.table.name] = {
                "written": wrote,
                "standing": stands,
                "rows": transaction.count(item.table),
            }
    return {"tables": tables}


def _keys(table: Table, keys: Iterable[str]) -> list[Any]:
    return key_values(table.key_columns, pl.Series([*keys], dtype=pl.String))
