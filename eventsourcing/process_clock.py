"""The clock of processes: what does not come in time is found when its time is over, not by the next check.

A worker follows the models that are watched live and have time limits. Of each subject it keeps by when it
must go on, in the order of time, and with its position in one transaction; so a tick costs what is new and
what is due, whatever is stored, and a killed worker's successor goes on. What is due is looked at once more,
for the subject may have gone on since; what is overdue is logged and noted once, where the sensor finds it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from datetime import UTC, datetime, timedelta

from eventsourcing.errors import NotFoundError
from eventsourcing.events import new_event_id
from eventsourcing.process_checks import Watcher, check_process
from eventsourcing.process_machine import machine_of
from eventsourcing.process_models import ProcessModel, process_models
from eventsourcing.storage.base import CHECKPOINTS, StateTable, StateTransaction, purge_all
from eventsourcing.store import EventStore

_log = logging.getLogger(__name__)

TICK_S = 10.0
WINDOW = 5_000
"""How many positions one transaction takes."""

_DUE_AT_ONCE = 100
_SEPARATOR = "\x1f"

DEADLINES = StateTable("process-deadlines")
"""Key: model and subject. Value: by when it must go on."""

DUE = StateTable("process-due")
"""Key: model, moment and subject, so that what is due first comes first. Value: the subject."""

OVERDUE = StateTable("process-overdue")
"""Key: a time-ordered id. Value: the violation, for a month."""

KEPT = timedelta(days=30)


class ProcessClock:
    """Finds what is overdue in one model's subjects. One process at a time runs a model's clock."""

    def __init__(self, store: EventStore, model: ProcessModel) -> None:
        self._store, self._model = store, model
        self._checkpoint = f"processes/{model.name}"
        self._definition = hashlib.sha256(repr(model).encode()).hexdigest()

    async def tick(self, now: datetime | None = None) -> int:
        """Take what is new up to the horizon, and tell what is overdue; return how many were told."""
        await self._begin()
        horizon = await self._store.horizon()
        while (after := await self._position()) < horizon:
            await self._take(after, min(after + WINDOW, horizon))
        return await self._tell(now or datetime.now(UTC))

    async def _begin(self) -> None:
        """Start at the first event where the model is new here, or is another one than before."""
        storage = self._store.storage
        async with storage.transaction() as transaction:
            row = await transaction.get(CHECKPOINTS, self._checkpoint)
        if row is not None and row["definition"] == self._definition:
            return
        for table in (DEADLINES, DUE):
            await purge_all(storage, table, prefix=f"{self._model.name}{_SEPARATOR}")
        async with storage.transaction() as transaction:
            await self._moved(transaction, 0)

    async def _position(self) -> int:
        async with self._store.storage.transaction() as transaction:
            row = await transaction.get(CHECKPOINTS, self._checkpoint)
        return int(row["position"]) if row is not None else 0

    async def _moved(self, transaction: StateTransaction, position: int) -> None:
        row = {"position": position, "definition": self._definition}
        await transaction.put(CHECKPOINTS, self._checkpoint, row)

    async def _take(self, after: int, to: int) -> None:
        """Write the deadlines of the subjects that have events between two positions."""
        with Watcher(self._store, self._model) as watcher:
            async for _ in watcher.violations(after=after, to=to):
                pass  # what breaks the rules is the sensor's to tell
            deadlines = watcher.deadlines()
        async with self._store.storage.transaction() as transaction:
            for subject in sorted(deadlines):
                await self._set(transaction, subject, deadlines[subject])
            await self._moved(transaction, to)

    async def _set(self, transaction: StateTransaction, subject: str, deadline: datetime | None) -> None:
        key = f"{self._model.name}{_SEPARATOR}{subject}"
        before = await transaction.get(DEADLINES, key, lock=True)
        if before is not None:
            await transaction.delete(DUE, self._due_key(str(before), subject))
        if deadline is not None:
            moment = _moment(deadline)
            await transaction.put(DEADLINES, key, moment)
            await transaction.put(DUE, self._due_key(moment, subject), subject)
        elif before is not None:
            await transaction.delete(DEADLINES, key)

    async def _tell(self, now: datetime) -> int:
        storage, told = self._store.storage, 0
        end = self._due_key(_moment(now), "")
        while True:
            async with storage.transaction() as transaction:
                rows = await transaction.scan(
                    DUE, prefix=f"{self._model.name}{_SEPARATOR}", limit=_DUE_AT_ONCE
                )
            due = [subject for key, subject in rows if key < end]
            for subject in due:
                told += await self._tell_of(subject, now)
            if len(due) < _DUE_AT_ONCE:
                return told

    async def _tell_of(self, subject: str, now: datetime) -> bool:
        """Note a subject that is overdue, and forget its deadline: it is told once."""
        try:
            violation = (await check_process(self._store, self._model, subject, now=now))["violation"]
        except NotFoundError:  # the store was restored to an earlier state
            violation = None
        is_overdue = violation is not None and violation["reason"] == "overdue"
        async with self._store.storage.transaction() as transaction:
            await self._set(transaction, subject, None)
            if is_overdue:
                await transaction.put(OVERDUE, str(new_event_id()), violation)
                await transaction.purge(OVERDUE, older_than_s=KEPT.total_seconds())
        if is_overdue:
            expected = " or ".join(violation["expected"])
            _log.error("%r is overdue in %r: expected %s", subject, self._model.name, expected)
        return is_overdue

    def _due_key(self, moment: str, subject: str) -> str:
        return f"{self._model.name}{_SEPARATOR}{moment}{_SEPARATOR}{subject}"


async def watch_clock(store: EventStore) -> None:
    """Run the clock of every model that is watched live and has time limits, until cancelled."""
    await store.initialize()
    timed = [model for model in process_models() if model.live and _is_timed(model)]
    clocks = [ProcessClock(store, model) for model in timed]
    while True:
        for clock in clocks:
            await clock.tick()
        await asyncio.sleep(TICK_S)


def _is_timed(model: ProcessModel) -> bool:
    return model.limit is not None or machine_of(model).is_timed


def _moment(moment: datetime) -> str:
    """A moment as text that sorts by time."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
