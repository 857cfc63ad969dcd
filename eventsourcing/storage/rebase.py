"""Move a restored store past every position that was ever handed out, so that none is handed out again.

After a restore, or a failover that lost the last commits, the sequence stands at an earlier position than
readers have seen. Appending then gives new events positions that readers have passed: they would never
see them. A rebase lets the sequence go on above the highest position known anywhere, and records what lies
between as lost.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import asyncpg
from sqlalchemy.engine import make_url

from eventsourcing.errors import UnavailableError
from eventsourcing.storage.base import CHECKPOINTS, LOST_POSITIONS
from eventsourcing.storage.postgres_errors import translated
from eventsourcing.storage.postgres_pool import CONNECT_TIMEOUT_S, dsn
from eventsourcing.storage.postgres_rows import use_canonical_json
from eventsourcing.storage.postgres_states import PostgresTransaction
from eventsourcing.storage.statements import statements

_REBASE = statements("rebase")
_TRIES = 10


@dataclass(frozen=True, slots=True)
class Rebase:
    """What a rebase found and did. Positions from `first` to `last` are lost; None where none are."""

    head: int
    """The highest committed position, or the last one recorded as lost before."""
    checkpoint: int
    """The highest checkpoint of any consumer."""
    seen: int
    """The highest position that anybody is known to have seen."""
    first: int | None = None
    last: int | None = None

    @property
    def next_position(self) -> int | None:
        """The position of the next event appended; None where nothing was to be done."""
        return None if self.last is None else self.last + 1


async def rebase(database_url: str, *, seen: int = 0, dry_run: bool = False) -> Rebase:
    """Move the store past `seen` and past every checkpoint in it; record the positions lost.

    Repeating it changes nothing. Appends wait meanwhile. `dry_run` only says what would be done. Raises
    UnavailableError, ConfigurationError or SchemaError; then nothing was changed, or all of it will be by
    repeating it.
    """
    with translated(sent=False):
        connection = await asyncpg.connect(dsn(make_url(database_url)), timeout=CONNECT_TIMEOUT_S)
    try:
        with translated():
            await use_canonical_json(connection)
            for _ in range(_TRIES):
                with suppress(asyncpg.DeadlockDetectedError):  # an append drew first, and waits for the table
                    async with connection.transaction():
                        return await _rebase(connection, seen, dry_run=dry_run)
        raise UnavailableError("appends in flight would not let the rebase pass; stop them, and repeat it")
    finally:
        connection.terminate()


async def _rebase(connection: asyncpg.Connection, seen: int, *, dry_run: bool) -> Rebase:
    await connection.execute(_REBASE["exclude_appends"])
    await connection.execute(_REBASE["hold_sequence"])
    known = await connection.fetchrow(_REBASE["what_is_known"], LOST_POSITIONS.name, CHECKPOINTS.name)
    head = max(known["committed"], known["lost"])
    seen = max(seen, known["checkpoint"])
    if seen <= head:
        return Rebase(head, known["checkpoint"], seen)
    done = Rebase(head, known["checkpoint"], seen, first=head + 1, last=max(seen, known["drawn"]))
    if not dry_run:
        await connection.execute(_REBASE["move_sequence"], done.last)
        record = {**asdict(done), "recorded_at": datetime.now(UTC)}
        await PostgresTransaction(connection).put(LOST_POSITIONS, f"{done.first:020}", record)
    return done
