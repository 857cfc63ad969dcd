"""Pages of events copied out of PostgreSQL as text, which a frame is read from outside Python's lock.

As text and not as CSV, in which every quote of a payload stands twice: half the time to read.
"""

from __future__ import annotations

import asyncio
from io import BytesIO

import polars as pl

from eventsourcing.query import EventQuery
from eventsourcing.storage.fragments import page
from eventsourcing.storage.postgres_errors import translated
from eventsourcing.storage.postgres_pool import ConnectionPool
from eventsourcing.storage.statements import statements

_SELECT = statements("events")["select_columns"]
_NAMES = ("event_id", "event_type", "aggregate_id", "event_version", "metadata", "data", "position")
"""The columns of `select_columns`, in its order."""


async def copied_page(pool: ConnectionPool, query: EventQuery, cursor: int | None, size: int) -> pl.DataFrame:
    """One page as the store keeps it; see event_columns.newest."""
    sql, values = page(query, cursor=cursor, size=size, select=_SELECT)
    text = BytesIO()
    async with pool.acquire() as connection:
        with translated():
            await connection.copy_from_query(sql, *values, output=text, format="text")
    return await asyncio.to_thread(_typed, text.getvalue())


def _typed(text: bytes) -> pl.DataFrame:
    numbers = pl.col("position", "event_version").cast(pl.Int64)
    if not text:
        return pl.DataFrame(schema=dict.fromkeys(_NAMES, pl.String)).with_columns(numbers)
    frame = pl.read_csv(
        BytesIO(text),
        has_header=False,
        new_columns=[*_NAMES],
        infer_schema=False,
        separator="\t",
        quote_char=None,
    )
    escaped = [name for name in _TEXTS if frame[name].str.contains("\\", literal=True).any()]
    return frame.with_columns(numbers, *(_unescaped(pl.col(name)) for name in escaped))


def _unescaped(text: pl.Expr) -> pl.Expr:
    """What COPY's text format escaped; the escaped backslashes wait as a character that no text holds."""
    text = text.str.replace_all("\\\\", "\0", literal=True)
    for character, escape in _ESCAPES.items():
        text = text.str.replace_all(escape, character, literal=True)
    return text.str.replace_all("\0", "\\", literal=True)


_TEXTS = ("event_type", "aggregate_id", "metadata", "data")
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f", "\v": "\\v"}
"""Character -> how COPY writes it (PostgreSQL documentation, COPY, Text Format)."""
