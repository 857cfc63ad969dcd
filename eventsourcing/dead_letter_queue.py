"""The dead letter queue: see what consumer groups gave up, give it to them again, or discard it.

Re-drives and discards of one group are done by one process at a time, and each is an entry in the audit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from eventsourcing import audit
from eventsourcing.config import EventBusConfig
from eventsourcing.dead_letters import (
    dead_letters,
    parked_groups,
    parked_rows,
    remove_letter,
    scan_letters,
)
from eventsourcing.errors import BusyError, ConfigurationError, NotFoundError
from eventsourcing.handlers import EventHandler
from eventsourcing.redrive import PAGE, ParkedSelection, Redrive, RedriveResult
from eventsourcing.storage.base import Storage
from eventsourcing.store import EventStore


class DeadLetterQueue:
    """What consumer groups gave up, and what is done about it."""

    def __init__(self, store: EventStore, config: EventBusConfig | None = None) -> None:
        self._store = store
        self._config = config or EventBusConfig()

    async def groups(self) -> dict[str, dict[str, Any]]:
        """Each group that has parked aggregates → {aggregates, letters, oldest, causes}.

        `causes` tells each fingerprint's {aggregates, event_type, error, last_failed_at}, of the newest
        failure among them; the fingerprint is "" where nothing has failed since a re-drive stopped.
        """
        storage = await self._storage()
        found = {}
        for group in await parked_groups(storage):
            rows = [row async for _, row in parked_rows(storage, group)]
            found[group] = {
                "aggregates": len(rows),
                "letters": sum(row["letters"] for row in rows),
                "oldest": min((row["since"] for row in rows), default=None),
                "causes": _causes(rows),
            }
        return found

    async def preview(self, selection: ParkedSelection, *, limit: int | None = None) -> list[dict[str, Any]]:
        """What a re-drive of a selection would take: {aggregate_id, letters, event_type, error, …}."""
        storage = await self._storage()
        found: list[dict[str, Any]] = []
        async for aggregate_id, row in parked_rows(storage, selection.group):
            if limit is not None and len(found) >= limit:
                break
            if selection.takes(aggregate_id, row):
                found.append({"aggregate_id": aggregate_id, **row})
        return found

    async def letters(self, group: str, aggregate_id: str, *, limit: int = 100) -> list[dict[str, Any]]:
        """The queue of one parked aggregate, in order. Raises NotFoundError when it is not parked."""
        found = await dead_letters(await self._storage(), group, aggregate_id=aggregate_id, limit=limit)
        if not found:
            raise NotFoundError("parked aggregate", f"{group}/{aggregate_id}")
        return found

    async def redrive(
        self,
        selection: ParkedSelection,
        handlers: Sequence[EventHandler],
        *,
        by: str,
        why: str,
        cap: int | None = None,
        should_stop: Callable[[RedriveResult], bool] | None = None,
    ) -> RedriveResult:
        """Give the selected queues to the group's handlers, at most `cap` letters of them.

        `should_stop` is asked before each letter, with what is done so far.
        Raises BusyError while another re-drive or discard of the group runs, ConfigurationError without
        a handler; then nothing was done.
        """
        what = {**asdict(selection), "cap": cap}
        async with self._alone(selection.group, handlers) as storage:
            entry = await self._begin(storage, "redrive", by=by, what=what, why=why)
            chosen = [row["aggregate_id"] for row in await self.preview(selection)]
            result = await Redrive(
                storage, self._config, selection.group, handlers, cap=cap, should_stop=should_stop
            ).run(chosen)
            async with storage.transaction() as transaction:
                await audit.complete(transaction, entry, asdict(result))
        return result

    async def discard(
        self,
        group: str,
        aggregate_id: str,
        handlers: Sequence[EventHandler] = (),
        *,
        by: str,
        why: str,
        whole_queue: bool = False,
    ) -> RedriveResult:
        """Give up the event in front of a parked aggregate, or its whole queue.

        What stood behind the one event is re-driven at once, so that it flows. Raises NotFoundError when
        the aggregate is not parked, BusyError, and ConfigurationError when something stands behind the
        event and there is no handler for it; then nothing was discarded.
        """
        async with self._alone(group, None) as storage:
            queue = await dead_letters(storage, group, aggregate_id=aggregate_id, limit=2)
            if not queue:
                raise NotFoundError("parked aggregate", f"{group}/{aggregate_id}")
            if queue[0]["status"] != "failed" and not whole_queue:
                raise NotFoundError("failed event in front of", f"{group}/{aggregate_id}")
            if len(queue) > 1 and not whole_queue:
                _require(handlers, group)
            what = {"group": group, "aggregate_id": aggregate_id, "whole_queue": whole_queue}
            entry = await self._begin(storage, "discard", by=by, what=what, why=why)
            dropped = await self._drop(storage, group, aggregate_id, entry, whole_queue=whole_queue)
            behind = await dead_letters(storage, group, aggregate_id=aggregate_id, limit=1)
            result = RedriveResult(released=0 if behind else 1)
            if behind:
                result = await Redrive(storage, self._config, group, handlers).run([aggregate_id])
            async with storage.transaction() as transaction:
                await audit.complete(transaction, entry, {"discarded": dropped, **asdict(result)})
        return result

    async def actions(self, *, limit: int = 100) -> list[dict[str, Any]]:
        """The last actions of operators, newest first: {at, by, action, what, why, outcome}."""
        return await audit.audit_entries(await self._storage(), limit=limit)

    async def _drop(
        self, storage: Storage, group: str, aggregate_id: str, entry: str, *, whole_queue: bool
    ) -> dict[str, Any]:
        """Remove letters page by page, each page with its note in the audit entry; say what was removed:
        how many, and the first events of them."""
        count, first = 0, []
        while True:
            async with storage.transaction() as transaction:
                page = await scan_letters(transaction, group, aggregate_id, limit=PAGE if whole_queue else 1)
                for key, row in page:
                    await remove_letter(transaction, group, aggregate_id, key)
                    names = ("event_id", "event_type", "event_version")
                    first.append({name: row["event"][name] for name in names})
                count += len(page)
                dropped = {"count": count, "events": first[:PAGE]}
                await audit.complete(transaction, entry, {"discarded": dropped})
            if len(page) < PAGE:
                return dropped

    async def _begin(self, storage: Storage, action: str, *, by: str, what: Any, why: str) -> str:
        async with storage.transaction() as transaction:
            return await audit.begin(transaction, action, by=by, what=what, why=why)

    @asynccontextmanager
    async def _alone(self, group: str, handlers: Sequence[EventHandler] | None) -> AsyncIterator[Storage]:
        """The storage, while nobody else re-drives the group. The lease dies with the process."""
        if handlers is not None:
            _require(handlers, group)
        storage = await self._storage()
        async with storage.lease(f"redrive/{group}") as ours:
            if not ours:
                raise BusyError(f"the dead letters of {group!r} are being worked on by another process")
            yield storage

    async def _storage(self) -> Storage:
        await self._store.initialize()
        return self._store.storage


def _causes(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    causes: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row.get("last_failed_at", "")):
        known = causes.get(row.get("fingerprint", ""), {"aggregates": 0})
        causes[row.get("fingerprint", "")] = {
            "aggregates": known["aggregates"] + 1,
            **{name: row.get(name) for name in ("event_type", "error", "last_failed_at")},
        }
    return causes


def _require(handlers: Sequence[EventHandler], group: str) -> None:
    if not handlers:
        raise ConfigurationError(
            f"no handler of the group {group!r} is known here; register it in a plugin, or pass it"
        )
