"""The audit log of a service: every access by its caller, and every administrative act.

An act is any call that changes something and is no append. Its entry is written before it begins, so what
cannot be recorded does not happen, and is completed with its status. Accesses are kept for five seconds
and written together, like ones counted in one entry; a killed process loses those seconds. What is held
meanwhile is bounded: beyond 5,000 different accesses only the route is told apart, not the path.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from fastapi import Request

from api.access import NOBODY, caller_of
from eventsourcing import EventSourcingError, audit
from eventsourcing.secrets import redact
from eventsourcing.storage.base import StateStorage

log = logging.getLogger("esm.api.audit")

FLUSH_S = 5.0
MAX_HELD = 5_000
_PURGE_EVERY_S = 3600.0
_MAX_PATH, _MAX_QUERY = 512, 200
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Access(NamedTuple):
    """What like accesses have in common."""

    by: str
    action: str
    path: str
    client: str
    outcome: str


class AuditLog:
    """Collects the accesses to one service, and writes its acts."""

    def __init__(self, storage: StateStorage, *, kept: timedelta) -> None:
        self._storage, self._kept = storage, kept
        self._held: dict[Access, tuple[datetime, int]] = {}

    async def begin_act(self, request: Request, action: str) -> str:
        """Write the entry of an act that begins; its id. Raises UnavailableError, and nothing may begin."""
        what = {"path": _path_of(request), "client": _client_of(request)}
        async with self._storage.transaction() as transaction:
            return await audit.begin(
                transaction, action, by=caller_of(request).name, what=what, why="asked for over HTTP"
            )

    async def complete_act(self, entry_id: str, outcome: str) -> None:
        """Add what came of an act; where the storage is away, its entry stays without."""
        try:
            async with self._storage.transaction() as transaction:
                await audit.complete(transaction, entry_id, outcome)
        except EventSourcingError as error:
            log.warning("audit entry %s stays without its outcome %s: %s", entry_id, outcome, error)

    def note(self, request: Request, action: str, route: str, outcome: str) -> None:
        """Keep an access until it is written. Of a stranger's request only the route is told."""
        by = caller_of(request)
        path = route if by is NOBODY else _path_of(request)
        access = Access(by.name, action, path, _client_of(request), outcome)
        if len(self._held) >= MAX_HELD and access not in self._held:
            access = access._replace(path=route, client="")
        at, count = self._held.get(access) or (datetime.now(UTC), 0)
        self._held[access] = (at, count + 1)

    async def flush(self) -> None:
        """Write what is held. Raises UnavailableError; then all of it is held still."""
        held, self._held = self._held, {}
        if not held:
            return
        try:
            async with self._storage.transaction() as transaction:
                await audit.add_accesses(transaction, map(_entry, held.items()))
        except BaseException:
            for access, (at, count) in held.items():
                later = self._held.get(access, (at, 0))[1]
                self._held[access] = (at, count + later)
            raise

    @asynccontextmanager
    async def running(self) -> AsyncIterator[AuditLog]:
        """Write every five seconds and remove what is past its time; write the rest at the end."""
        writer = asyncio.create_task(self._write(), name="audit log")
        try:
            yield self
        finally:
            writer.cancel()
            with suppress(asyncio.CancelledError):
                await writer
            with suppress(EventSourcingError):
                await self.flush()

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        purge_at = loop.time() + FLUSH_S
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await self.flush()
                if loop.time() >= purge_at:
                    purge_at = loop.time() + _PURGE_EVERY_S
                    await self._purge()
            except EventSourcingError as error:
                log.warning("the audit log waits: %s", error)

    async def _purge(self) -> None:
        async with self._storage.lease("audit purge") as ours:
            if ours:
                await audit.purge_audit(self._storage, older_than=self._kept)


def _entry(held: tuple[Access, tuple[datetime, int]]) -> dict[str, Any]:
    access, (at, count) = held
    what = {"path": access.path, "client": access.client}
    return {
        "at": at,
        "by": access.by,
        "action": access.action,
        "what": what,
        "outcome": access.outcome,
        "count": count,
    }


def _path_of(request: Request) -> str:
    path: str = request.scope["path"]
    query: bytes = request.scope["query_string"]
    text = f"{path[:_MAX_PATH]}?{query[:_MAX_QUERY].decode('latin-1')}" if query else path[:_MAX_PATH]
    return redact(_UNPRINTABLE.sub("\ufffd", text))


def _client_of(request: Request) -> str:
    return request.client.host if request.client else ""
