"""Appending a chunk of a frame to PostgreSQL: the rows in binary form, copied in, in one transaction.

The order inside is that of every append (see postgres_append). Streams are taken for new while they
were; a chunk that finds one that is not is copied again with its versions looked up. Whatever else the
constraints refuse - an event stored before, a version that must hold - is left to the append of drafts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import datetime

import polars as pl

from eventsourcing.columnar import EventChunk
from eventsourcing.storage.base import ChunkReceipt
from eventsourcing.storage.copycolumns import encoded
from eventsourcing.storage.copyformat import COLUMNS, END, SIGNATURE
from eventsourcing.storage.postgres_errors import RACE, race_lost
from eventsourcing.storage.postgres_pool import ConnectionPool
from eventsourcing.storage.statements import statements

_EVENTS = statements("events")
_HEADS = {"aggregate_id": pl.String, "head": pl.Int32}
NO_HEADS = pl.DataFrame(schema=_HEADS)
"""No stream looked up: all are new."""


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
        for look_up in (False, True) if self._expects_new_streams else (True,):
            try:
                receipt, new_streams = await self._copy(chunk.frame, on_placed, look_up=look_up)
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
        self, frame: pl.DataFrame, on_placed: Callable[[], None] | None, *, look_up: bool
    ) -> tuple[ChunkReceipt | None, bool]:
        """The receipt, None where a version that must hold is not the next one; and were all streams new?"""
        streams = frame["aggregate_id"].unique(maintain_order=True)
        named = frame.filter(pl.col("event_version") > 1)["aggregate_id"].unique()
        looked_up = (streams if look_up else named).to_list()
        async with self._pool.transaction(limit_s=self._timeout_s) as connection:
            opened = await connection.fetchrow(_EVENTS["open_append"], looked_up, frame.height)
            if on_placed is not None:
                on_placed()
            positions, moment = opened["positions"], opened["recorded_at"]
            heads = pl.DataFrame({"aggregate_id": looked_up, "head": opened["versions"]}, _HEADS)
            rows = await asyncio.to_thread(placed, frame, heads, positions)
            if rows is None:
                return None, False
            await connection.copy_to_table(
                "events", source=pieces(rows, moment), columns=COLUMNS, format="binary"
            )
        return ChunkReceipt(frame.height, 0, positions[0], positions[-1]), not any(opened["versions"])


def placed(frame: pl.DataFrame, heads: pl.DataFrame, positions: list[int]) -> pl.DataFrame | None:
    """The rows with versions after these heads and positions in their order, sorted by aggregate; None when
    a version that must hold is not the next one."""
    head = pl.lit(0, pl.Int32)
    if heads.height:
        frame, head = frame.join(heads, on="aggregate_id", how="left", maintain_order="left"), pl.col("head")
    version = head.fill_null(0) + pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over("aggregate_id")
    frame = frame.with_columns(next=version)
    wanted = pl.col("event_version")
    if frame.select(((wanted != 0) & (wanted != pl.col("next"))).any()).item():
        return None
    return (
        frame.with_columns(position=pl.Series(positions, dtype=pl.Int64), event_version=pl.col("next"))
        .drop("next", "head", strict=False)
        .sort("aggregate_id", "position")
    )


async def pieces(rows: pl.DataFrame, recorded_at: datetime) -> AsyncIterator[bytes]:
    """The rows a piece at a time, for a COPY: the server inserts one while the next is made."""
    yield SIGNATURE
    parts = encoded(rows, recorded_at)
    while (part := await asyncio.to_thread(next, parts, None)) is not None:
        yield part
    yield END
