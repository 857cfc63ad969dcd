"""Appending a chunk of a frame to PostgreSQL: the rows as text, copied in, in one transaction.

The order inside is that of every append (see postgres_append). Streams are taken for new while they
were; a chunk that finds one that is not is copied again with its versions looked up. Whatever else the
constraints refuse - an event stored before, a version that must hold - is left to the append of drafts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from io import BytesIO

import polars as pl

from eventsourcing.columnar import EventChunk
from eventsourcing.storage.base import ChunkReceipt
from eventsourcing.storage.postgres_errors import RACE, race_lost
from eventsourcing.storage.postgres_pool import ConnectionPool
from eventsourcing.storage.statements import statements

_EVENTS = statements("events")
_MOMENT = "%Y-%m-%d %H:%M:%S%.6f+00"
_ESCAPED = ("aggregate_id", "aggregate_type", "metadata", "data")
_HEADS = {"aggregate_id": pl.String, "head": pl.Int32}
NO_HEADS = pl.DataFrame(schema=_HEADS)
"""No stream looked up: all are new."""

_PIECE_BYTES = 1 << 19
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


class FrameCopier:
    """Copies chunks through one pool."""

    def __init__(self, pool: ConnectionPool, *, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._expects_new_streams = True

    async def copy(self, chunk: EventChunk, on_placed: Callable[[], None] | None) -> ChunkReceipt | None:
        """Store all rows; None when a constraint refused one, and then nothing of the chunk is stored.

        `on_placed`: see EventStorage.append_chunk.
        """
        text = await asyncio.to_thread(as_text, chunk.frame)
        for look_up in (False, True) if self._expects_new_streams else (True,):
            try:
                receipt, new_streams = await self._copy(text, on_placed, look_up=look_up)
            except RACE as error:
                if not race_lost(error):
                    raise
                self._expects_new_streams = False
            else:
                if receipt is not None:
                    self._expects_new_streams = new_streams
                return receipt
        return None

    async def _copy(
        self, text: pl.DataFrame, on_placed: Callable[[], None] | None, *, look_up: bool
    ) -> tuple[ChunkReceipt | None, bool]:
        """The receipt, None where a version that must hold is not the next one; and were all streams new?"""
        streams = text["aggregate_id"].unique(maintain_order=True)
        named = text.filter(pl.col("event_version") > 1)["aggregate_id"].unique()
        looked_up = (streams if look_up else named).to_list()
        async with self._pool.transaction(limit_s=self._timeout_s) as connection:
            opened = await connection.fetchrow(_EVENTS["open_append"], looked_up, text.height)
            if on_placed is not None:
                on_placed()
            positions, moment = opened["positions"], opened["recorded_at"]
            heads = pl.DataFrame({"aggregate_id": looked_up, "head": opened["versions"]}, _HEADS)
            rows = await asyncio.to_thread(placed, text, heads, positions, moment)
            if rows is None:
                return None, False
            source = pieces(await asyncio.to_thread(written, rows))
            await connection.copy_to_table("events", source=source, columns=rows.columns, format="text")
        return ChunkReceipt(text.height, 0, positions[0], positions[-1]), not any(opened["versions"])


def as_text(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows with moments and escapes as COPY's text format wants them (PostgreSQL documentation)."""
    for character, escape in _ESCAPES.items():
        there = [name for name in _ESCAPED if frame[name].str.contains(character, literal=True).any()]
        frame = frame.with_columns(pl.col(there).str.replace_all(character, escape, literal=True))
    return frame.with_columns(pl.col("timestamp").dt.strftime(_MOMENT))


def placed(
    text: pl.DataFrame, heads: pl.DataFrame, positions: list[int], recorded_at: datetime
) -> pl.DataFrame | None:
    """The rows with versions after these heads and positions in their order, sorted by aggregate; None when
    a version that must hold is not the next one."""
    head = pl.lit(0, pl.Int32)
    if heads.height:
        text, head = text.join(heads, on="aggregate_id", how="left", maintain_order="left"), pl.col("head")
    version = head.fill_null(0) + pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over("aggregate_id")
    text = text.with_columns(next=version)
    wanted = pl.col("event_version")
    if text.select(((wanted != 0) & (wanted != pl.col("next"))).any()).item():
        return None
    return (
        text.with_columns(
            position=pl.Series(positions, dtype=pl.Int64),
            recorded_at=pl.lit(recorded_at.isoformat()),
            event_version=pl.col("next"),
        )
        .drop("next", "head", strict=False)
        .sort("aggregate_id", "position")
    )


def written(rows: pl.DataFrame) -> BytesIO:
    """The rows in COPY's text format."""
    text = BytesIO()
    rows.write_csv(text, include_header=False, separator="\t", quote_style="never", null_value="\\N")
    text.seek(0)
    return text


async def pieces(text: BytesIO) -> AsyncIterator[memoryview]:
    """The text a piece at a time, for a COPY.

    Given a file, asyncpg makes a class to read it, and a class is a cycle: each file of some megabytes
    stayed until Python's collector came by, a kilobyte for every event.
    """
    content = text.getbuffer()
    for start in range(0, len(content), _PIECE_BYTES):
        yield content[start : start + _PIECE_BYTES]
