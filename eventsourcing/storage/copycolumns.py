"""Columns of events as rows in PostgreSQL's binary COPY format (see copyformat).

The server takes a quarter less time for them than for the same rows as text: it parses no line, no number
and no moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import chain, islice, repeat
from struct import Struct

import polars as pl

from eventsourcing.storage.copyformat import COLUMNS, microseconds

_UNIX_EPOCH = 946_684_800_000_000
"""Microseconds from 1970 to 2000, from where PostgreSQL counts."""

_NULL = b"\xff\xff\xff\xff"
_fixed = Struct(">hiqiqiqi16sii").pack
_length = Struct(">i").pack


def encoded(rows: pl.DataFrame, recorded_at: datetime) -> Iterator[bytes]:
    """The rows, a thousand at a time. Their columns are those of copyformat in any order, `recorded_at`
    aside: ids and payloads as text, moments in UTC; only correlation and causation may be null."""
    fixed = map(
        _fixed,
        *(repeat(len(COLUMNS)), repeat(8), rows["position"].to_list()),
        *(repeat(8), repeat(microseconds(recorded_at))),
        *(repeat(8), (rows["timestamp"].dt.epoch("us") - _UNIX_EPOCH).to_list()),
        *(repeat(16), _identifiers(rows["event_id"]).to_list()),
        *(repeat(4), rows["event_version"].to_list()),
    )
    identifiers = (_identifiers(rows[name]) for name in ("correlation_id", "causation_id"))
    texts = (rows[name].cast(pl.Binary) for name in _TEXTS)
    fields = chain.from_iterable(_fields(values) for values in (*identifiers, *texts))
    each = zip(fixed, *fields, strict=False)
    while piece := b"".join(chain.from_iterable(islice(each, _ROWS_A_PIECE))):
        yield piece


_TEXTS = ("event_type", "aggregate_id", "aggregate_type", "metadata", "data")
_ROWS_A_PIECE = 1000


def _identifiers(texts: pl.Series) -> pl.Series:
    return texts.str.replace_all("-", "", literal=True).str.decode("hex")


def _fields(values: pl.Series) -> Iterator[Iterable[bytes]]:
    """Each value with its length before it; what is the same in all rows is made once."""
    first = values[0]
    if first == values[-1] and values.n_unique() == 1:
        yield repeat(_NULL if first is None else _length(len(first)) + first)
    elif values.null_count():
        yield (_NULL if value is None else _length(len(value)) + value for value in values)
    else:
        yield map(_length, values.bin.size().to_list())
        yield values.to_list()
