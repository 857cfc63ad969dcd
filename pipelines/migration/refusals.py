"""Refusals: records that the target itself would not take, found by halving, each with its reason.

What the load does with a chunk, in the chunk's one transaction:

1. `refused = write_or_halve(frame, write, transaction.savepoint, allowed=…)`: `write` puts the records of
   a frame with their children, undo rows and ID map into the target; it may be called with any part of
   the chunk, and what a refused part wrote is undone by its savepoint.
2. `keep_refusals(connection, …)` beside the chunk's state: after a crash a record is in the target or
   in `mig_quarantine`, never in neither.
3. After the commit `refused_events` of the chunk are appended like those of its loaded records, and
   appended again by a resumed run. The stage counts them as `quarantined`.
4. A target that refuses more than the mapping's threshold allows is broken, not its records: the chunk
   is undone and the stage fails, and may be resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import polars as pl
import sqlalchemy as sa

from pipelines.migration.errors import RecordRefusedError
from pipelines.migration.worktables import quarantine


@dataclass(frozen=True)
class Refusal:
    """One record that the target refused: its source key, the rule, the column if known, the message."""

    source_key: str
    rule: str
    column: str
    message: str
    chunk: int = -1


def write_or_halve(
    frame: pl.DataFrame,
    write: Callable[[pl.DataFrame], None],
    savepoint: Callable[[], AbstractContextManager[None]],
    *,
    allowed: int,
) -> list[Refusal]:
    """Write all records that the target takes, and return the others, in the frame's order.

    k refusals among n records cost about 2·k·log2(n) writes. Raises the target's own error as soon as
    more than `allowed` records are refused, and whatever else `write` raises; the caller undoes the chunk.
    """
    refused: list[Refusal] = []
    waiting = [frame]
    while waiting:
        part = waiting.pop()
        try:
            with savepoint():
                write(part)
        except RecordRefusedError as error:
            if part.height > 1:
                half = part.height // 2
                waiting += [part.slice(half), part.slice(0, half)]
                continue
            refused.append(Refusal(part["_key"][0], error.rule, error.column, error.reason))
            if len(refused) > allowed:
                raise
    return refused


def keep_refusals(
    connection: sa.Connection, migration_id: str, entity: str, chunk: int, refused: Sequence[Refusal]
) -> None:
    """Store the refusals of a chunk, in the transaction of its rows."""
    if refused:
        fixed = {"migration_id": migration_id, "entity": entity, "number": chunk}
        connection.execute(
            sa.insert(quarantine),
            [
                {
                    **fixed,
                    "source_key": item.source_key,
                    "rule": item.rule,
                    "column_name": item.column,
                    "message": item.message,
                }
                for item in refused
            ],
        )


def kept_refusals(
    connection: sa.Connection, migration_id: str, entity: str, chunk: int | None = None
) -> list[Refusal]:
    """The refusals of an entity, or of one of its chunks, by source key."""
    statement = sa.select(quarantine).where(
        quarantine.c.migration_id == migration_id, quarantine.c.entity == entity
    )
    if chunk is not None:
        statement = statement.where(quarantine.c.number == chunk)
    rows = connection.execute(statement.order_by(quarantine.c.source_key))
    return [Refusal(row.source_key, row.rule, row.column_name, row.message, chunk=row.number) for row in rows]
