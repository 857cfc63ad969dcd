"""Naming: the columns in which a changed row differs, from what its event or its staged row says."""

from __future__ import annotations

from typing import Any

import polars as pl

from pipelines.migration.chunks import Chunk
from pipelines.migration.context import RunContext
from pipelines.migration.errors import StagedDataError
from pipelines.migration.keys import key_text, key_values
from pipelines.migration.plan import ChildPlan, EntityPlan
from pipelines.migration.rowhash import row_hashes
from pipelines.migration.schema import Column
from pipelines.migration.target import TargetTransaction
from pipelines.migration.told import Row, Told, seen, table_of, told_columns, told_rows, typed


def name_columns(
    run: RunContext, transaction: TargetTransaction, told: Told, differences: list[dict[str, Any]]
) -> None:
    """Name the columns in which changed rows differ: from their events, or their staged rows."""
    for item in differences:
        entity, record = run.plan.entities[item["entity"]], item["record"]
        if item["kind"] != "changed" or record is None:
            continue
        child = next((c for c in entity.children.values() if c.table.name == item["table"]), None)
        columns = told_columns(run, entity, child)
        meant = told.of_record(run, entity, record) or _staged_record(run, entity, record)
        if meant is None:
            continue
        ids, rows = _rows_of(run, transaction, entity, child, record)
        _, wanted = told_rows(entity, child, [meant])
        by_id = dict(zip(ids, wanted, strict=False))
        names: set[str] = set()
        for place, own in enumerate(ids):
            if item["found_by"] == ["events"] or own == item["key"]:
                row = rows[place : place + 1]
                names |= {c.name for c in columns if own in by_id and _differs(c, row, by_id[own])}
        item["columns"] = sorted(names)


def _rows_of(
    run: RunContext,
    transaction: TargetTransaction,
    entity: EntityPlan,
    child: ChildPlan | None,
    record: str,
) -> tuple[list[str], pl.DataFrame]:
    """The rows of one record in one table, by key: their keys, and their values as events tell them."""
    table, owner = table_of(entity, child)
    columns = told_columns(run, entity, child)
    names = sorted({column.name for column in columns} | {*owner, *table.key})
    key = key_values(table.pick(owner), pl.Series([record]))
    page = transaction.rows(table, names, of=owner, among=key)
    ids: list[str] = page.select(key_text(table.key_columns)).to_series().to_list()
    return ids, seen(run, table, columns, page)


def _differs(column: Column, row: pl.DataFrame, wanted: Row) -> bool:
    return bool(row_hashes(row, [column]).item() != row_hashes(typed([column], [wanted]), [column]).item())


def _staged_record(run: RunContext, entity: EntityPlan, record: str) -> Row | None:
    """The record as it was staged, while the run still has its files."""
    for attempt in run.attempts:
        for place, chunk in enumerate(attempt.staged.get("valid", {}).get(entity.name, [])):
            row = _find(run, chunk, record)
            if row is None:
                continue
            found = {name: row.get(f"t:{name}") for name in entity.loaded_columns}
            if len(entity.target.key) == 1:
                found |= dict.fromkeys(entity.target.key, row["_record"])
            for name in entity.children:
                family = attempt.staged["valid"][f"{entity.name}.{name}"][place]
                made = run.read(family).filter(pl.col("_record").cast(pl.String) == record)
                found[name] = [
                    {key[2:]: value for key, value in item.items() if key.startswith("t:")}
                    for item in made.to_dicts()
                ]
            return _masked_like_events(run, entity, found)
    return None


def _find(run: RunContext, chunk: Chunk, record: str) -> Row | None:
    try:
        found = run.read(chunk).filter(pl.col("_record").cast(pl.String) == record)
    except StagedDataError:
        return None  # the run is over and its files are gone
    return found.row(0, named=True) if found.height else None


def _masked_like_events(run: RunContext, entity: EntityPlan, found: Row) -> Row:
    secret = {name for name, spec in entity.fields.items() if spec.secret}
    masked = {name: run.masker.mask(value) if name in secret else value for name, value in found.items()}
    for child in entity.children.values():
        masked[child.name] = [
            {name: run.masker.mask(value) if name in child.secret else value for name, value in row.items()}
            for row in found[child.name]
        ]
    return masked
