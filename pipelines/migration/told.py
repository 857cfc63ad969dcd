"""Told: what the events of a run tell of each record, folded and compared with the target.

The last event of a record counts: migrated, it stands in the target as the event says; rolled back, it
is none of ours. Secret values are compared by the hashes that stand for them, so the events can prove
the target without holding a secret.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import polars as pl

from eventsourcing.events import RecordedEvent
from eventsourcing.query import EventQuery
from pipelines.migration.announce import EventLog
from pipelines.migration.buckets import Compared, compare_parts
from pipelines.migration.chunks import Chunk
from pipelines.migration.context import RunContext
from pipelines.migration.errors import StagedDataError
from pipelines.migration.eventframes import streams_of
from pipelines.migration.plan import ChildPlan, EntityPlan
from pipelines.migration.records import rolled_back_class
from pipelines.migration.rowhash import row_hashes
from pipelines.migration.schema import Column, Table
from pipelines.migration.target import TargetTransaction

_BATCH = 5000
_PAGE = 10_000
Row = dict[str, Any]


@dataclass(frozen=True)
class Told:
    """The event store as a worker thread reads it: the store lives on an event loop."""

    log: EventLog
    loop: asyncio.AbstractEventLoop

    def events(self, query: EventQuery) -> Iterator[list[RecordedEvent]]:
        """The events of a query in batches."""
        stream = self.log.read(query)
        while batch := asyncio.run_coroutine_threadsafe(_take(stream), self.loop).result():
            yield batch

    def of_record(self, run: RunContext, entity: EntityPlan, record: str) -> Row | None:
        """What the run's last event of a record says is in the target; None when it says nothing."""
        cls = entity.mapping.event
        if cls is None:
            return None
        query = EventQuery(
            aggregate_id=streams_of(run, entity, cls.declared_aggregate, pl.Series([record]))[0],
            event_types=(cls.declared_type,),
            correlation_id=run.row.correlation_id,
        )
        last = [event for batch in self.events(query) for event in batch][-1:]
        return dict(last[0].data["target_data"]) if last else None


async def _take(stream: AsyncIterator[RecordedEvent]) -> list[RecordedEvent]:
    batch: list[RecordedEvent] = []
    async for event in stream:
        batch.append(event)
        if len(batch) == _BATCH:
            break
    return batch


def compare_told(
    run: RunContext, transaction: TargetTransaction, entity: EntityPlan, told: Told
) -> dict[str, Compared]:
    """The records and the children of an entity, by table; {} for one that emits no events."""
    if entity.mapping.event is None:
        return {}
    taken_back = _rolled_back(run, entity, told)
    parts: dict[str, ChildPlan | None] = {entity.target.name: None}
    parts |= {child.table.name: child for child in entity.children.values()}

    def tell() -> Iterator[tuple[str, pl.DataFrame]]:
        for records in _told_records(run, entity, told, taken_back):
            for table, child in parts.items():
                yield table, _hashed(_columns(run, entity, child), *_keyed(entity, child, records))

    result = compare_parts(
        tell,
        {table: partial(_found_rows, run, transaction, entity, child) for table, child in parts.items()},
        first=100,
    )
    if entity.policy != "fail":  # the others may have been there before
        for found in result.values():
            found.counts["extra"], found.rows = 0, [row for row in found.rows if row[0] != "extra"]
    return result


def _rolled_back(run: RunContext, entity: EntityPlan, told: Told) -> dict[str, int]:
    """The position of the last event that took each record back."""
    cls = rolled_back_class(entity)
    if cls is None:
        return {}
    query = EventQuery(event_types=(cls.declared_type,), correlation_id=run.row.correlation_id)
    return {event.aggregate_id: event.position for batch in told.events(query) for event in batch}


def _told_records(
    run: RunContext, entity: EntityPlan, told: Told, taken_back: dict[str, int]
) -> Iterator[list[Row]]:
    cls = entity.mapping.event
    assert cls is not None
    query = EventQuery(event_types=(cls.declared_type,), correlation_id=run.row.correlation_id)
    for batch in told.events(query):
        standing = [e for e in batch if e.position > taken_back.get(e.aggregate_id, 0)]
        yield [dict(event.data["target_data"]) for event in standing]


def _keyed(entity: EntityPlan, child: ChildPlan | None, records: list[Row]) -> tuple[list[str], list[Row]]:
    """The record keys and the rows that events tell of one table."""
    keys = [str(record[entity.target_key]) for record in records]
    if child is None:
        return keys, records
    pairs = [
        (key, row) for key, record in zip(keys, records, strict=True) for row in record.get(child.name, [])
    ]
    return [key for key, _ in pairs], [row for _, row in pairs]


def _columns(run: RunContext, entity: EntityPlan, child: ChildPlan | None) -> list[Column]:
    """The columns that events tell of; a secret one holds its mask, which is text."""
    if child is None:
        names, table = entity.loaded_columns, entity.target
        secret = {name for name, spec in entity.fields.items() if spec.secret}
    else:
        table, secret = child.table, set(child.secret)
        names = child.made_columns(entity.source, entity.target.columns[entity.target_key], run.plan.settings)
    columns = [table.columns[name] for name in sorted({*names})]
    return [replace(column, kind="text") if column.name in secret else column for column in columns]


def _hashed(columns: list[Column], keys: list[str], rows: list[Row]) -> pl.DataFrame:
    frame = _typed(columns, rows)
    return pl.DataFrame([pl.Series("key", keys, dtype=pl.String), row_hashes(frame, columns).alias("hash")])


def _typed(columns: list[Column], rows: list[Row]) -> pl.DataFrame:
    """JSON values in the types of their columns."""
    return pl.DataFrame([_read(column, [row.get(column.name) for row in rows]) for column in columns])


def _read(column: Column, values: list[Any]) -> pl.Series:
    if column.kind.startswith("datetime"):
        moments = pl.Series(column.name, values, dtype=pl.String).str.to_datetime(
            "%Y-%m-%dT%H:%M:%S%.fZ", strict=False, time_unit="us"
        )
        return moments.dt.replace_time_zone("UTC") if column.kind == "datetime_tz" else moments
    if column.kind == "date":
        return pl.Series(column.name, values, dtype=pl.String).str.to_date(strict=False)
    if column.kind == "binary":
        return pl.Series(column.name, values, dtype=pl.String).str.decode("base64", strict=False)
    return pl.Series(column.name, values, dtype=column.dtype, strict=False)


def _found_rows(
    run: RunContext, transaction: TargetTransaction, entity: EntityPlan, child: ChildPlan | None
) -> Iterator[pl.DataFrame]:
    """The target's rows in the same form, each under the key of its record."""
    table = entity.target if child is None else child.table
    owner = entity.target_key if child is None else child.parent
    columns = _columns(run, entity, child)
    assert table.key is not None
    names = sorted({column.name for column in columns} | {owner, table.key})
    after = None
    while True:
        page = transaction.read(table, names, after=after, limit=_PAGE)
        if page.height:
            keys = page[owner].cast(pl.String).alias("key")
            yield pl.DataFrame([keys, row_hashes(_seen(run, table, columns, page), columns).alias("hash")])
            after = page[table.key][-1]
        if page.height < _PAGE:
            return


def _seen(run: RunContext, table: Table, columns: list[Column], page: pl.DataFrame) -> pl.DataFrame:
    """The target's values as events would tell them: the secret ones masked."""
    masked = [
        run.masker.mask_all(page[column.name])
        for column in columns
        if column is not table.columns[column.name]
    ]
    return page.with_columns(masked)


def name_columns(
    run: RunContext, transaction: TargetTransaction, told: Told, differences: list[dict[str, Any]]
) -> None:
    """Name the columns in which changed rows differ: from their events, or their staged rows."""
    for item in differences:
        entity, record = run.plan.entities[item["entity"]], item["record"]
        if item["kind"] != "changed" or record is None:
            continue
        child = next((c for c in entity.children.values() if c.table.name == item["table"]), None)
        columns = _columns(run, entity, child)
        meant = told.of_record(run, entity, record) or _staged_record(run, entity, record)
        if meant is None:
            continue
        ids, rows = _rows_of(run, transaction, entity, child, record)
        _, wanted = _keyed(entity, child, [meant])
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
    table = entity.target if child is None else child.table
    owner = entity.target_key if child is None else child.parent
    assert table.key is not None
    columns = _columns(run, entity, child)
    names = sorted({column.name for column in columns} | {owner, table.key})
    key = record if table.columns[owner].kind != "integer" else int(record)
    page = transaction.rows(table, names, of=owner, among=[key])
    return page[table.key].cast(pl.String).to_list(), _seen(run, table, columns, page)


def _differs(column: Column, row: pl.DataFrame, wanted: Row) -> bool:
    return bool(row_hashes(row, [column]).item() != row_hashes(_typed([column], [wanted]), [column]).item())


def _staged_record(run: RunContext, entity: EntityPlan, record: str) -> Row | None:
    """The record as it was staged, while the run still has its files."""
    for attempt in run.attempts:
        for place, chunk in enumerate(attempt.staged.get("valid", {}).get(entity.name, [])):
            row = _find(run, chunk, record)
            if row is None:
                continue
            found = {name: row.get(f"t:{name}") for name in entity.loaded_columns} | {
                entity.target_key: row["_record"]
            }
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
