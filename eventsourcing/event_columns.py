"""Events read as columns: what folds many events at once needs of them, and no object a row.

A frame has `position`, `event_type`, `aggregate_id`, `event_version` and, as JSON text, `data`. A payload
is the text that is stored, save that an old one is the newest one, as in every read.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from eventsourcing.canonical import decode, encode
from eventsourcing.events import RecordedEvent
from eventsourcing.upcasting import SCHEMA_VERSION, VERSIONED, read_newest

COLUMNS: dict[str, pl.DataType] = {
    "position": pl.Int64(),
    "event_type": pl.String(),
    "aggregate_id": pl.String(),
    "event_version": pl.Int32(),
    "data": pl.String(),
}


def frame_of(events: Sequence[RecordedEvent]) -> pl.DataFrame:
    """The columns of events."""
    rows = [
        (event.position, str(event.event_type), event.aggregate_id, event.event_version, encode(event.data))
        for event in events
    ]
    binary = {**COLUMNS, "data": pl.Binary()}
    return pl.DataFrame(rows, schema=binary, orient="row").with_columns(pl.col("data").cast(pl.String))


def newest(stored: pl.DataFrame) -> pl.DataFrame:
    """Stored columns, `event_id` and `metadata` among them, with every payload at its newest version.

    Raises UpcastError.
    """
    names_one = pl.col("metadata").str.contains(f'"{SCHEMA_VERSION}"', literal=True)
    old = stored.select((pl.col("event_type").is_in([*VERSIONED]) | names_one).arg_true()).to_series()
    frame = stored.select(pl.col(name).cast(dtype) for name, dtype in COLUMNS.items())
    if old.is_empty():
        return frame
    payloads = []
    for row in old:
        fields = stored.row(row, named=True)
        fields.update(data=decode(fields["data"]), metadata=decode(fields["metadata"]))
        read_newest(fields)
        payloads.append(encode(fields["data"]).decode())
    return frame.with_columns(frame["data"].scatter(old, payloads))
