"""A transaction of states on one PostgreSQL connection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import asyncpg

from eventsourcing.canonical import decode, encode
from eventsourcing.storage.base import StateTable
from eventsourcing.storage.postgres_errors import translated
from eventsourcing.storage.statements import statements

_STATES = statements("states")
_END = "\U0010ffff" * 64
"""Above whatever follows a prefix: in byte order nothing is above the last character, many times over."""

_NEXT = "\x01"
"""What makes the next text in byte order, for text holds no NUL."""


_COPIED = ("table_name", "key", "value")

COPY_FROM = 500
"""The number of new keys from which copying them in beats one statement: it takes half the time."""


class PostgresTransaction:
    """See StateTransaction. Lives as long as the transaction of its connection."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._absent: dict[str, set[str]] = {}

    async def get(self, table: StateTable, key: str, *, lock: bool = False) -> Any | None:
        statement = _STATES["get_locked" if lock else "get"]
        with translated():
            found = await self._connection.fetchval(statement, table.name, key)
        return None if found is None else decode(found)

    async def put(self, table: StateTable, key: str, value: Any) -> None:
        with translated():
            await self._connection.execute(_STATES["put"], table.name, key, encode(value))

    async def get_many(self, table: StateTable, keys: Sequence[str]) -> dict[str, Any]:
        with translated():
            rows = await self._connection.fetch(_STATES["get_many"], table.name, list(keys))
        found = {key: decode(value) for key, value in rows}
        if len(keys) - len(found) >= COPY_FROM:
            self._absent[table.name] = {key for key in keys if key not in found}
        return found

    async def put_many(self, table: StateTable, values: Mapping[str, Any]) -> None:
        absent = self._absent.pop(table.name, set())
        new = sorted(key for key in values if key in absent)
        if len(new) < COPY_FROM or not await self._copy(table, {key: values[key] for key in new}):
            new = []
        ordered = sorted(values.keys() - set(new))  # one order of row locks for everyone: no deadlocks
        if not ordered:
            return
        with translated():
            await self._connection.execute(
                _STATES["put_many"], table.name, ordered, [encode(values[key]) for key in ordered]
            )

    async def _copy(self, table: StateTable, values: Mapping[str, Any]) -> bool:
        """Copy keys in that were not there when they were looked up; False, and nothing done, when one is."""
        rows = [(table.name, key, encode(value)) for key, value in values.items()]
        with translated():
            try:
                async with self._connection.transaction():
                    await self._connection.copy_records_to_table("states", columns=_COPIED, records=rows)
            except asyncpg.UniqueViolationError:
                return False
        return True

    async def add(self, table: StateTable, key: str, value: Any) -> bool:
        with translated():
            return bool(await self._connection.fetchval(_STATES["add"], table.name, key, encode(value)))

    async def claim(self, table: StateTable, keys: Sequence[str], initial: Any) -> dict[str, Any]:
        ordered = sorted(set(keys))
        with translated():
            await self._connection.execute(_STATES["add_many"], table.name, ordered, encode(initial))
            rows = await self._connection.fetch(_STATES["get_many_locked"], table.name, ordered)
        return {key: decode(value) for key, value in rows}

    async def delete(self, table: StateTable, key: str) -> None:
        with translated():
            await self._connection.execute(_STATES["delete"], table.name, key)

    async def scan(
        self,
        table: StateTable,
        *,
        prefix: str = "",
        after: str | None = None,
        limit: int = 1000,
        backwards: bool = False,
    ) -> list[tuple[str, Any]]:
        low, high = prefix, prefix + _END
        if after is not None:  # bounds, and no condition of its own: a deep page starts where it begins
            low, high = (low, min(high, after)) if backwards else (max(low, after + _NEXT), high)
        statement = _STATES["scan_backwards" if backwards else "scan"]
        with translated():
            rows = await self._connection.fetch(statement, table.name, low, high, limit)
        return [(key, decode(value)) for key, value in rows]

    async def count(self, table: StateTable, *, prefix: str = "") -> int:
        with translated():
            return cast(
                int, await self._connection.fetchval(_STATES["count"], table.name, prefix, prefix + _END)
            )

    async def delete_many(self, table: StateTable, keys: Sequence[str]) -> None:
        with translated():
            await self._connection.execute(_STATES["delete_many"], table.name, list(keys))

    async def purge(
        self, table: StateTable, *, prefix: str = "", older_than_s: float | None = None, limit: int = 1000
    ) -> int:
        with translated():
            return cast(
                int,
                await self._connection.fetchval(
                    _STATES["purge"], table.name, prefix, prefix + _END, older_than_s, limit
                ),
            )

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        nested = self._connection.transaction()
        with translated():
            await nested.start()
        try:
            yield
        except BaseException:
            with translated():
                await nested.rollback()
            raise
        with translated():
            await nested.commit()
