"""The dead letter queue: see what consumer groups gave up, give it to them again, or discard it.

Re-drives and discards of one group are done by one process at a time, and each is an entry in the audit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID

from eventsourcing import acts, audit
from eventsourcing.config import EventBusConfig
from eventsourcing.dead_letters import (
    PAGE,
    dead_letters,
    parked_groups,
    parked_rows,
    remove_letter,
    scan_letters,
)
from eventsourcing.errors import BusyError, ConfigurationError, NotFoundError
from eventsourcing.handlers import EventHandler
from eventsourcing.redrive import ParkedSelection, Redrive, RedriveResult
from eventsourcing.storage.base import StateTransaction, Storage
from eventsourcing.store import EventStore

_FRONTS = "/fronts"
"""The part of an act that says what a discard takes: aggregates in order, and the keys in front of each."""


@dataclass(frozen=True, slots=True)
class Discarded:
    """What came of a discard: `letters` went, `released` counts the aggregates that are parked no more, and
    `behind` names those whose queue goes on behind what was discarded."""

    letters: int
    released: int
    behind: tuple[str, ...]


@dataclass(slots=True)
class _Dropped:
    """How far a discard is: how many letters it removed, and the first events of them."""

    entry: str
    """Its entry in the audit."""
    count: int = 0
    first: list[dict[str, Any]] = field(default_factory=list)
    passed: int = 0
    """How many of its aggregates are done."""
    behind: list[str] = field(default_factory=list)
    """Those of them whose queue goes on."""

    def add(self, event: dict[str, Any]) -> None:
        """Count one more."""
        self.count += 1
        if len(self.first) < PAGE:
            self.first.append({name: event[name] for name in ("event_id", "event_type", "event_version")})

    def told(self) -> dict[str, Any]:
        """As the audit tells it."""
        return {"discarded": {"count": self.count, "events": self.first}}


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
        async for aggregate_id, row in parked_rows(storage, selection.group, only=selection.named):
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
            async with storage.transaction() as transaction:
                queue = await scan_letters(transaction, group, aggregate_id, limit=2)
            if not queue:
                raise NotFoundError("parked aggregate", f"{group}/{aggregate_id}")
            key, front = queue[0]
            if front["status"] != "failed" and not whole_queue:
                raise NotFoundError("failed event in front of", f"{group}/{aggregate_id}")
            if len(queue) > 1 and not whole_queue:
                _require(handlers, group)
            what = {"group": group, "aggregate_id": aggregate_id, "whole_queue": whole_queue}
            entry = await self._begin(storage, "discard", by=by, what=what, why=why)
            dropped = _Dropped(entry)
            await self._drop(storage, group, aggregate_id, dropped, only=None if whole_queue else [key])
            result = RedriveResult(released=0 if dropped.behind else 1)
            if dropped.behind:
                result = await Redrive(storage, self._config, group, handlers).run([aggregate_id])
            async with storage.transaction() as transaction:
                await audit.complete(transaction, entry, {**dropped.told(), **asdict(result)})
        return result

    async def discard_selected(
        self,
        selection: ParkedSelection,
        *,
        by: str,
        why: str,
        letters: Collection[str] = (),
        whole_queue: bool = False,
        limit: int = 100,
        token: UUID | None = None,
    ) -> Discarded:
        """Give up the failed event in front of each selected aggregate, or its whole queue.

        Takes at most `limit` aggregates; `letters`, keys, spares every event in front that is not among
        them. What stands behind stays parked until it is re-driven. A token names the request: repeated
        after a crash it ends what it began, and takes nothing else. Raises BusyError; then nothing was
        discarded.
        """
        async with self._alone(selection.group, None) as storage:
            chosen = [row["aggregate_id"] for row in await self.preview(selection, limit=limit)]
            what = {**asdict(selection), "whole_queue": whole_queue, "letters": len(letters)}
            async with storage.transaction() as transaction:
                begun = await acts.recall(transaction, token)
                fronts = await acts.recall(transaction, token, part=_FRONTS)
                if begun is None or fronts is None:
                    begun = {"entry": await audit.begin(transaction, "discard", by=by, what=what, why=why)}
                    taken = [
                        (
                            name,
                            [key for key, _ in await _in_front(transaction, selection.group, name, letters)],
                        )
                        for name in chosen
                    ]
                    fronts = {"of": taken}  # a list: JSON keeps no order of names
                    await acts.remember(transaction, token, fronts, part=_FRONTS)
                    await acts.remember(transaction, token, begun)
            dropped = _Dropped(**begun)
            for name, front in fronts["of"][dropped.passed :]:
                only = None if whole_queue else front
                await self._drop(storage, selection.group, name, dropped, only=only, token=token)
            result = Discarded(dropped.count, len(fronts["of"]) - len(dropped.behind), tuple(dropped.behind))
            async with storage.transaction() as transaction:
                counts = {"released": result.released, "behind": len(dropped.behind)}
                await audit.complete(transaction, dropped.entry, {**dropped.told(), **counts})
        return result

    async def would_discard(
        self,
        selection: ParkedSelection,
        *,
        letters: Collection[str] = (),
        whole_queue: bool = False,
        limit: int = 100,
    ) -> Discarded:
        """What `discard_selected` would come to, were it asked for now."""
        storage = await self._storage()
        rows = await self.preview(selection, limit=limit)
        count, behind = 0, []
        for row in rows:
            going = row["letters"]
            if not whole_queue:
                async with storage.transaction() as transaction:
                    going = len(await _in_front(transaction, selection.group, row["aggregate_id"], letters))
            count += going
            if going < row["letters"]:
                behind.append(row["aggregate_id"])
        return Discarded(count, len(rows) - len(behind), tuple(behind))

    async def require_free(self, group: str) -> None:
        """Raise BusyError while a re-drive or discard of the group runs."""
        async with self._alone(group, None):
            return

    async def actions(self, *, limit: int = 100) -> list[dict[str, Any]]:
        """The last actions of operators, newest first: {at, by, action, what, why, outcome}."""
        return await audit.audit_entries(await self._storage(), limit=limit)

    async def _drop(
        self,
        storage: Storage,
        group: str,
        aggregate_id: str,
        dropped: _Dropped,
        *,
        only: Collection[str] | None,
        token: UUID | None = None,
    ) -> None:
        """Remove the failed letter in front if it is among `only`, or with None all letters page by page,
        each page with its note in the audit."""
        is_over = False
        while not is_over:
            async with storage.transaction() as transaction:
                page = await scan_letters(transaction, group, aggregate_id, limit=PAGE if only is None else 1)
                going = [
                    (key, row)
                    for key, row in page
                    if only is None or (row["status"] == "failed" and key in only)
                ]
                for key, row in going:
                    await remove_letter(transaction, group, aggregate_id, key)
                    dropped.add(row["event"])
                is_over = len(page) < PAGE
                if is_over:
                    dropped.passed += 1
                    dropped.behind += await _goes_on(transaction, group, aggregate_id)
                if going:
                    await audit.complete(transaction, dropped.entry, dropped.told())
                await acts.remember(transaction, token, asdict(dropped))

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


async def _goes_on(transaction: StateTransaction, group: str, aggregate_id: str) -> list[str]:
    """The aggregate, if something is left in its queue."""
    return [aggregate_id] if await scan_letters(transaction, group, aggregate_id, limit=1) else []


async def _in_front(
    transaction: StateTransaction, group: str, aggregate_id: str, only: Collection[str]
) -> list[tuple[str, dict[str, Any]]]:
    """The letter in front of a queue, if it failed and is among `only`, where that is given."""
    page = await scan_letters(transaction, group, aggregate_id, limit=1)
    return [(key, row) for key, row in page if row["status"] == "failed" and (not only or key in only)]


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
