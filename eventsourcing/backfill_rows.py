"""The rows of a backfill: each checked, dated, given its id, and brought into the columns of an append.

All faults are found before anything is appended, each with the number of its row, the first being 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import Any, TypeGuard
from uuid import UUID

import polars as pl

from eventsourcing.canonical import comparable, decode, utc
from eventsourcing.drafts import prepare
from eventsourcing.errors import BackfillRefusedError, InvalidEventError
from eventsourcing.events import BaseEvent, deterministic_event_id, event_class, parse_event

Row = BaseEvent | Mapping[str, Any] | InvalidEventError
"""A draft, or the fields of one as a stranger states them, or why a row of a file is neither."""

SHOWN_FAULTS = 100
"""How many faults an error names; it counts all of them."""

COLUMNS: dict[str, type[pl.DataType] | pl.DataType] = {
    "event_id": pl.String,
    "event_type": pl.String,
    "aggregate_id": pl.String,
    "aggregate_type": pl.String,
    "timestamp": pl.Datetime("us", "UTC"),
    "correlation_id": pl.String,
    "causation_id": pl.String,
    "metadata": pl.String,
    "data": pl.String,
}
"""The columns of an append, ids and JSON as text."""

_HOUSEKEEPING: dict[str, type[pl.DataType] | pl.DataType] = {"row": pl.Int64, "own_id": pl.Boolean}
"""Beside them: the number of the row, and whether it names its event_id itself."""

_BLOCK = 50_000


@dataclass
class Faults:
    """What is wrong with which rows."""

    shown: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, row: int, where: str, reason: str) -> None:
        """Count a fault, and keep its sentence among the first."""
        self.count += 1
        if len(self.shown) < SHOWN_FAULTS:
            self.shown.append(f"row {row}: {where}: {reason}" if where else f"row {row}: {reason}")

    def refuse(self, rows: int) -> None:
        """Raise BackfillRefusedError when there was a fault."""
        if self.count:
            raise BackfillRefusedError(self.shown, count=self.count, rows=rows)


def rows_of(source: Any) -> Iterator[Row]:
    """The rows of a list of drafts, of mappings, or of a frame: Polars, Arrow or what speaks as Arrow.

    Raises InvalidEventError for a frame with a column that no event has.
    """
    if isinstance(source, pl.LazyFrame):
        source = source.collect()
    if hasattr(source, "__arrow_c_stream__"):
        frame = source if isinstance(source, pl.DataFrame) else pl.DataFrame(source)
        if strangers := set(frame.columns) - set(BaseEvent.model_fields):
            raise InvalidEventError("not a column of events", field=min(strangers))
        return frame.iter_rows(named=True)
    return iter(source)


def checked_rows(rows: Iterable[Row], *, name: str, zone: tzinfo | None, now: datetime) -> pl.DataFrame:
    """The rows in the columns of an append, in the order given.

    Raises BackfillRefusedError naming every row that is no event, or has no date, one without a zone
    where `zone` is None, or one after `now`.
    """
    faults, blocks, count = Faults(), [], 0
    columns: dict[str, list[Any]] = {column: [] for column in (*_HOUSEKEEPING, *COLUMNS)}
    for count, row in enumerate(rows, start=1):
        try:
            values = _columns_of(row, name=name, zone=zone, now=now)
        except InvalidEventError as error:
            faults.add(count, error.field, error.reason)
            continue
        for column, value in zip(columns.values(), (count, *values), strict=True):
            column.append(value)
        if count % _BLOCK == 0:
            blocks.append(_block(columns))
            for column in columns.values():
                column.clear()
    faults.refuse(count)
    return pl.concat([*blocks, _block(columns)])


def _block(columns: dict[str, list[Any]]) -> pl.DataFrame:
    return pl.DataFrame(columns, schema={**_HOUSEKEEPING, **COLUMNS})


def _columns_of(row: Row, *, name: str, zone: tzinfo | None, now: datetime) -> tuple[Any, ...]:
    if isinstance(row, InvalidEventError):
        raise row
    if not isinstance(row, BaseEvent | Mapping):
        raise InvalidEventError(f"{type(row).__name__} is no event")
    event, said = _drafted(row) if isinstance(row, BaseEvent) else _described(row, zone)
    if event.timestamp > now:
        raise InvalidEventError("lies in the future", field="timestamp")
    if event.event_version:
        raise InvalidEventError("follows from the dates; leave it out", field="event_version")
    [new] = prepare([event])
    given = "event_id" in event.model_fields_set
    event_id = event.event_id if given else _event_id(name, event, said)
    return (
        given,
        event_id.hex,
        str(event.event_type),
        event.aggregate_id,
        event.aggregate_type,
        event.timestamp,
        None if event.correlation_id is None else event.correlation_id.hex,
        None if event.causation_id is None else event.causation_id.hex,
        new.metadata.decode(),
        new.data.decode(),
    )


def _event_id(name: str, event: BaseEvent, said: Any) -> UUID:
    """Always the same for what the row says, whatever this release makes of it."""
    moment = event.timestamp.isoformat()
    return deterministic_event_id(
        event.timestamp, name, str(event.event_type), event.aggregate_id, moment, comparable(said).decode()
    )


def _drafted(event: BaseEvent) -> tuple[BaseEvent, Any]:
    if "timestamp" not in event.model_fields_set:
        raise InvalidEventError("is missing", field="timestamp")
    return event.model_copy(update={"metadata": {**event.metadata, "backfilled": True}}), event.data


def _described(row: Mapping[str, Any], zone: tzinfo | None) -> tuple[BaseEvent, Any]:
    fields = {name: value for name, value in row.items() if value is not None}
    fields["timestamp"] = _moment(row.get("timestamp"), zone)
    metadata = _object(fields, "metadata")
    said = _object(fields, "data")
    cls = event_class(str(fields.get("event_type")))
    declared = cls.payload_model.model_fields if cls else {}
    # In a frame of several types each row has the fields of all of them.
    data = {name: value for name, value in said.items() if value is not None or name in declared}
    event = parse_event({**fields, "metadata": {**metadata, "backfilled": True}, "data": data})
    return event, {name: value for name, value in said.items() if value is not None}


def _object(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name, {})
    if isinstance(value, str | bytes):
        try:
            value = decode(value)
        except ValueError:
            raise InvalidEventError("is not JSON", field=name) from None
    if not _is_object(value):
        raise InvalidEventError("must be an object", field=name)
    return value


def _is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _moment(value: Any, zone: tzinfo | None) -> datetime:
    if value is None or value == "":
        raise InvalidEventError("is missing", field="timestamp")
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            raise InvalidEventError("is no date and time as in RFC 3339", field="timestamp") from None
    if not isinstance(value, datetime):
        raise InvalidEventError("is no date and time", field="timestamp")
    if value.tzinfo is None:
        if zone is None:
            raise InvalidEventError("names no time zone", field="timestamp")
        value = value.replace(tzinfo=zone)
    try:
        return utc(value).astimezone(UTC)
    except ValueError as error:
        raise InvalidEventError(str(error), field="timestamp") from None
