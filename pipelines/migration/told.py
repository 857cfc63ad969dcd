"""Told: what the events of a run tell of each record, folded, in the form of the target's rows.

The last event of a record counts: migrated, it stands in the target as the event says; rolled back, it
is none of ours. Secret values are compared by the hashes that stand for them, so the events can prove
the target without holding a secret.

Most records are compared as the very text that their event has, which costs a fraction of reading it.
The same values may be written in two ways, so texts that differ prove nothing: whoever finds some reads
the values (`values`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import orjson
import polars as pl

from eventsourcing.query import EventQuery
from pipelines.migration.announce import EventLog
from pipelines.migration.context import RunContext
from pipelines.migration.eventframes import streams_of, told_children, told_record
from pipelines.migration.keys import key_text, key_value
from pipelines.migration.plan import ChildPlan, EntityPlan
from pipelines.migration.records import rolled_back_class
from pipelines.migration.rowhash import row_hashes
from pipelines.migration.schema import Column, Table

Row = dict[str, Any]

_PLAIN = frozenset({"text", "integer", "uuid"})
"""Kinds whose text in JSON is their text in a key."""
_SAME_TEXT = frozenset({"text", "integer", "boolean", "datetime", "datetime_tz", "date", "uuid", "binary"})
"""Kinds of columns whose values have one text in JSON, whichever database they come from. A column of type
`json` (not `jsonb`) is among them: it keeps the text it was given."""


@dataclass(frozen=True)
class Told:
    """The event store as a worker thread reads it: the store lives on an event loop."""

    log: EventLog
    loop: asyncio.AbstractEventLoop

    def frames(self, query: EventQuery) -> Iterator[pl.DataFrame]:
        """The events of a query as columns."""
        stream = self.log.read_frames(query)
        while (frame := asyncio.run_coroutine_threadsafe(_next(stream), self.loop).result()) is not None:
            yield frame

    def of_record(self, run: RunContext, entity: EntityPlan, record: str) -> Row | None:
        """What the run's last event of a record says is in the target; None when it says nothing."""
        cls = entity.mapping.event
        if cls is None:
            return None
        query = EventQuery(
            aggregate_id=streams_of(run, entity, cls.declared_aggregate, pl.Series([record]))[0],
            event_types=(cls.declared_type,),
            correlation_id=run.row.correlation_id,
            backwards=True,
            limit=1,
        )
        texts = [text for frame in self.frames(query) for text in frame["data"]]
        return _target_data(texts[0]) if texts else None


async def _next(stream: AsyncIterator[pl.DataFrame]) -> pl.DataFrame | None:
    return await anext(stream, None)


@dataclass(frozen=True)
class Telling:
    """The events of one entity that emits some."""

    run: RunContext
    entity: EntityPlan
    told: Told

    def standing(self) -> Iterator[pl.Series]:
        """The payloads of the records that were migrated and not taken back since."""
        cls, taken_back = self.entity.mapping.event, self._taken_back()
        assert cls is not None
        for frame in self.told.frames(self._events(cls.declared_type)):
            self.run.refuse_when_stopped()
            if taken_back is not None:
                back = pl.col("taken_back").fill_null(0)
                frame = frame.join(taken_back, on="aggregate_id", how="left", maintain_order="left")
                frame = frame.filter(pl.col("position") > back)
            yield frame["data"]

    def _taken_back(self) -> pl.DataFrame | None:
        """The position of the last event that took each record back."""
        cls = rolled_back_class(self.entity)
        if cls is None:
            return None
        last = pl.col("position").max().alias("taken_back")
        frames = [
            frame.group_by("aggregate_id").agg(last)
            for frame in self.told.frames(self._events(cls.declared_type))
        ]
        return pl.concat(frames).group_by("aggregate_id").agg(pl.col("taken_back").max()) if frames else None

    def _events(self, event_type: str) -> EventQuery:
        return EventQuery(event_types=(event_type,), correlation_id=self.run.row.correlation_id)

    def has_same_text(self, child: ChildPlan | None) -> bool:
        """Whether the rows of a table, the record's own or its children, can be compared as texts."""
        columns = told_columns(self.run, self.entity, child)
        keys = {column.kind for column in self.entity.target_key}
        same = all(column.kind in _SAME_TEXT or column.type_name == "json" for column in columns)
        same = same and (len(self.entity.target_key) == 1 or keys <= _PLAIN)
        return same and not _MARKS & {*self.entity.loaded_columns, *self.entity.columns}

    def texts(self, child: ChildPlan | None, payloads: pl.Series) -> pl.DataFrame:
        """`key` and `hash`, the very text, of a table's rows as events tell them, each under its record's
        key."""
        told = _before(_after(pl.col("data"), _DATA), "}" + _END)
        texts = payloads.alias("data").to_frame().select(told.alias("hash"))
        names = [*self.entity.children]
        own = texts.select(_before(pl.col("hash"), _list_of(names[0]))) if names else texts
        keys = self._keys(own)
        if child is None:
            return pl.DataFrame([keys.alias("key"), own["hash"]])
        rows = _after(pl.col("hash"), _list_of(child.name))
        for following in names[names.index(child.name) + 1 :][:1]:
            rows = _before(rows, "]" + _list_of(following))
        first = self._columns_of(child)[0]
        each = rows.str.strip_suffix("]").str.strip_prefix(f'{{"{first}":').str.split(f'}},{{"{first}":')
        families = texts.select(keys.alias("key"), each.alias("hash")).explode("hash")
        return families.filter(pl.col("hash") != "").with_columns(pl.col("hash").str.strip_suffix("}"))

    def texts_of(self, child: ChildPlan | None, page: pl.DataFrame) -> pl.DataFrame:
        """The same of rows of the target."""
        entity = self.entity
        if child is not None:
            names = self._columns_of(child)
            rows = told_children(self.run, child, page.select(names)).struct.json_encode()
            text = rows.str.strip_prefix(f'{{"{names[0]}":').str.strip_suffix("}")
            return page.select(key_text(child.table.pick(child.parent)).alias("key"), text.alias("hash"))
        columns = entity.target_key
        keys = page.select(key_value(columns)).to_series()
        record = told_record(self.run, entity, keys, page.select(*entity.fields)).struct.json_encode()
        return page.select(key_text(columns).alias("key"), record.str.strip_suffix("}").alias("hash"))

    def _columns_of(self, child: ChildPlan) -> list[str]:
        """In the order in which events tell them."""
        return child.made_columns(self.entity.source, self.entity.record_dtype, self.run.plan.settings)

    def _keys(self, texts: pl.DataFrame) -> pl.Series:
        parts = [replace(column, kind="text") for column in self.entity.target_key]
        told = pl.DataFrame([_part_in(texts["hash"], column) for column in self.entity.target_key])
        return told.select(key_text(parts)).to_series()

    def values(self, child: ChildPlan | None, payloads: pl.Series) -> pl.DataFrame:
        """`key` and `hash` of a table's rows as events tell their values, each under its record's key."""
        columns = told_columns(self.run, self.entity, child)
        keys, rows = told_rows(self.entity, child, [_target_data(text) for text in payloads])
        hashes = row_hashes(typed(columns, rows), columns).alias("hash")
        return pl.DataFrame([pl.Series("key", keys, dtype=pl.String), hashes])

    def values_of(self, child: ChildPlan | None, page: pl.DataFrame) -> pl.DataFrame:
        """The same of rows of the target."""
        table, owner = table_of(self.entity, child)
        columns = told_columns(self.run, self.entity, child)
        hashes = row_hashes(seen(self.run, table, columns, page), columns).alias("hash")
        return page.select(key_text(table.pick(owner)).alias("key"), hashes)


_DATA, _END = '"target_data":', ',"migrated_at":"'
"""Between these stands what an event tells of the target. Inside a text their quotes would be escaped."""

_MARKS = {"target_data", "migrated_at"}
"""Names of columns that could be taken for them."""

_NUMBER, _TEXT = r"^(-?\d+)", r'^"((?:[^"\\]|\\.)*)"'


def _part_in(texts: pl.Series, column: Column) -> pl.Series:
    """One column of the key, as text, out of what events tell."""
    value = _after(pl.col(texts.name), f'"{column.name}":')
    form = _NUMBER if column.kind == "integer" else _TEXT
    found = texts.to_frame().select(value.str.extract(form)).to_series()
    if found.str.contains("\\", literal=True).any():
        found = pl.Series([None if text is None else orjson.loads(f'"{text}"') for text in found])
    return found.alias(column.name)


def _list_of(child: str) -> str:
    """Where the list of a record's children begins; inside a text its quotes would be escaped."""
    return f',"{child}":['


def _after(text: pl.Expr, mark: str) -> pl.Expr:
    """What stands behind the first such mark: cut out by bytes, a third of the time of a split."""
    start = text.str.find(mark, literal=True) + len(mark.encode())
    return text.cast(pl.Binary).bin.slice(start).cast(pl.String)


def _before(text: pl.Expr, mark: str) -> pl.Expr:
    """What stands before the first such mark; all of it where there is none."""
    end = text.str.find(mark, literal=True)
    return text.cast(pl.Binary).bin.slice(0, end).cast(pl.String)


def _target_data(payload: str) -> Row:
    found: Row = orjson.loads(payload)["target_data"]
    return found


def table_of(entity: EntityPlan, child: ChildPlan | None) -> tuple[Table, tuple[str, ...]]:
    """The table of an entity or of its children, and its columns that hold the record's key."""
    return (entity.target, entity.target.key) if child is None else (child.table, child.parent)


def told_rows(entity: EntityPlan, child: ChildPlan | None, records: list[Row]) -> tuple[list[str], list[Row]]:
    """The record keys and the rows that events tell of one table."""
    columns = entity.target_key
    if len(columns) == 1:
        keys = [str(record[columns[0].name]) for record in records]
    else:
        keys = typed(columns, records).select(key_text(columns)).to_series().to_list()
    if child is None:
        return keys, records
    pairs = [
        (key, row) for key, record in zip(keys, records, strict=True) for row in record.get(child.name, [])
    ]
    return [key for key, _ in pairs], [row for _, row in pairs]


def told_columns(run: RunContext, entity: EntityPlan, child: ChildPlan | None) -> list[Column]:
    """The columns that events tell of; a secret one holds its mask, which is text."""
    table, _ = table_of(entity, child)
    if child is None:
        names = entity.loaded_columns
        secret = {name for name, spec in entity.fields.items() if spec.secret}
    else:
        secret = {*child.secret}
        names = child.made_columns(entity.source, entity.record_dtype, run.plan.settings)
    columns = [table.columns[name] for name in sorted({*names})]
    return [replace(column, kind="text") if column.name in secret else column for column in columns]


def typed(columns: list[Column], rows: list[Row]) -> pl.DataFrame:
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


def seen(run: RunContext, table: Table, columns: list[Column], page: pl.DataFrame) -> pl.DataFrame:
    """The target's values as events would tell them: the secret ones masked."""
    masked = [
        run.masker.mask_all(page[column.name])
        for column in columns
        if column is not table.columns[column.name]
    ]
    return page.with_columns(masked)
