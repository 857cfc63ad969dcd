"""Events in files: NDJSON, CSV or Parquet, read as the rows of a backfill."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

from eventsourcing.backfill_rows import Row, rows_of
from eventsourcing.canonical import decode
from eventsourcing.errors import InvalidEventError
from eventsourcing.events import BaseEvent, event_class
from eventsourcing.schemas import payload_schema

ENDINGS = (".ndjson", ".jsonl", ".csv", ".parquet")


def rows_of_file(path: Path) -> Iterator[Row]:
    """The rows of a file, by its ending.

    A line of NDJSON and a row of Parquet hold the fields of an event. In CSV the columns that are none
    of these are fields of the payload, an empty cell is no value, and `row 1` is the first beneath the
    header. Raises ValueError naming a file of another kind or one that cannot be read.
    """
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path} is none of {', '.join(ENDINGS)}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    if path.suffix in (".ndjson", ".jsonl"):
        return _lines(path)
    try:
        if path.suffix == ".parquet":
            return rows_of(pl.read_parquet(path))
        return map(_from_cells, pl.read_csv(path, infer_schema=False).iter_rows(named=True))
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def _lines(path: Path) -> Iterator[Row]:
    """One row a line; empty lines at the end are none."""
    empty = 0
    with path.open("rb") as file:
        for line in file:
            if not line.strip():
                empty += 1
                continue
            yield from [InvalidEventError("the line is empty")] * empty
            empty = 0
            yield _from_line(line)


def _from_line(line: bytes) -> Row:
    try:
        fields = decode(line)
    except ValueError:
        return InvalidEventError("the line is not JSON")
    return fields if isinstance(fields, dict) else InvalidEventError("the line is not a JSON object")


def _from_cells(cells: Mapping[str, str | None]) -> Row:
    given = {name: cell for name, cell in cells.items() if cell not in (None, "")}
    fields: dict[str, Any] = {name: cell for name, cell in given.items() if name in BaseEvent.model_fields}
    payload = {name: cell for name, cell in given.items() if name not in BaseEvent.model_fields}
    if not payload:
        return fields
    if "data" in fields:
        return InvalidEventError("stands beside columns of the payload", field="data")
    documents = _documents(str(fields.get("event_type")))
    for name in payload.keys() & documents:
        try:
            payload[name] = decode(str(payload[name]))
        except ValueError:
            return InvalidEventError("is not JSON", field=f"data.{name}")
    return {**fields, "data": payload}


@cache
def _documents(event_type: str) -> frozenset[str]:
    """The payload's fields that are objects or lists: in a cell they stand as JSON."""
    cls = event_class(event_type)
    fields = payload_schema(cls).get("properties", {}) if cls else {}
    return frozenset(name for name, schema in fields.items() if schema.get("type") in ("object", "array"))
