"""Rebuilds: a read model folded anew beside the live one, and compared with it row by row.

The live generation is read and kept up to date all the while. The new one goes up to where the live one
stands; there both are compared in one snapshot; then it follows to the horizon, ready to be switched to.

States of the generation beside: building → ready → previous, once it was switched away from. A rebuild
whose process died reads as interrupted, and goes on from its checkpoint; one that starts over removes
what was beside first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from eventsourcing.canonical import decode, encode
from eventsourcing.differences import Difference, compare, forget, rows_of
from eventsourcing.errors import BusyError
from eventsourcing.generations import BATCH, Filling, Generation
from eventsourcing.heartbeats import beating
from eventsourcing.readmodels import READ_MODEL_ROWS, ReadModel
from eventsourcing.storage.base import CHECKPOINTS, StateTransaction, Storage, purge_all

REPORT_S = 0.5
"""How often a rebuild reports and asks whether to stop."""

TRIES = 10

LETS_GO_S = 1.0
"""How long who rebuilt or switched may take to let go, once everybody can read that it is done."""


@dataclass(frozen=True, slots=True)
class RebuildProgress:
    """How far a rebuild is: the position reached of the one aimed at, in positions a second since it was
    begun or taken up; `eta` in seconds, None before anything can be said."""

    position: int
    target: int
    rate: float
    eta: float | None

    @property
    def progress(self) -> float:
        """In percent."""
        return min(100.0, 100.0 * self.position / self.target) if self.target else 100.0


Report = Callable[[RebuildProgress], Awaitable[bool]]
"""Told about progress at most twice a second; False asks the rebuild to stop."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What came of a rebuild: `table` holds the new states, complete up to `position`. `difference` is what
    the live ones are against them; None when it was stopped, and then the same call goes on."""

    name: str
    table: str
    fold_version: int
    position: int
    duration: float
    difference: Difference | None

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values."""
        found = None if self.difference is None else self.difference.to_dict()
        return {**asdict(self), "difference": found}


async def rebuild(
    storage: Storage, model: ReadModel, *, fresh: bool = False, report: Report | None = None
) -> Rebuilt:
    """Fold a read model anew beside the live one and compare them; an interrupted rebuild goes on.

    `fresh` starts over. What else was beside is removed. Nothing that is read changes. Raises BusyError
    while another rebuild or a switch of it runs, UnavailableError when the store is lost on the way (the
    same call goes on), UpcastError for an event that cannot be read.
    """
    async with alone(storage, model):
        began = time.monotonic()
        generation = await _begin(storage, model, fresh=fresh)
        watch = _Watch(report)

        async def beat() -> None:
            await _note(storage, model, heartbeat_at=datetime.now(UTC), progress=watch.shown)

        difference = None
        async with beating(f"rebuild of {model.name}", beat):
            position = await _fill(storage, model, generation, watch)
            if not watch.stopped:
                difference = await _compared(storage, model, generation)
                position = await generation.catch_up(storage)
                await _note(storage, model, state="ready", progress=None, ready_at=datetime.now(UTC))
        duration = time.monotonic() - began
        return Rebuilt(
            model.name, generation.table.name, generation.fold_version, position, duration, difference
        )


@asynccontextmanager
async def alone(storage: Storage, model: ReadModel) -> AsyncIterator[None]:
    """Be the one who rebuilds or switches a read model; who is about to let go is waited for. Raises
    BusyError."""
    for _ in range(TRIES):
        async with storage.lease(f"rebuild/{model.name}") as ours:
            if ours:
                yield
                return
        await asyncio.sleep(LETS_GO_S / TRIES)
    raise BusyError(f"read model {model.name!r} is being rebuilt or switched by another process")


async def _begin(storage: Storage, model: ReadModel, *, fresh: bool) -> Generation:
    """The generation to fill: the one that an interrupted rebuild left, else a new one."""
    live = await model.live(storage)
    async with storage.transaction() as transaction:
        row = await model.row(transaction, lock=True)
        beside = row["beside"]
        if beside is not None and not fresh and await _goes_on(transaction, model, live, beside):
            return model.generation(beside)
        if beside is not None:
            row["beside"] = {**beside, "state": "discarded"}
            await transaction.put(READ_MODEL_ROWS, model.name, row)
    if beside is not None:
        await _remove(storage, model, beside)
    async with storage.transaction() as transaction:
        row = await model.row(transaction, lock=True)
        now = datetime.now(UTC)
        place = {"number": row["next"], "fold_version": model.fold.version, "state": "building"}
        row["beside"], row["next"] = {**place, "started_at": now, "heartbeat_at": now}, row["next"] + 1
        await transaction.put(READ_MODEL_ROWS, model.name, row)
    return model.generation(place)


async def _goes_on(
    transaction: StateTransaction, model: ReadModel, live: Generation, beside: dict[str, Any]
) -> bool:
    """Whether what stands beside can be carried on, and can still be compared with the live one."""
    generation = model.generation(beside)
    if beside["state"] != "building" or not generation.is_current:
        return False
    done = await generation.position_in(transaction)
    return live.is_current or done <= await live.position_in(transaction)


async def _remove(storage: Storage, model: ReadModel, beside: dict[str, Any]) -> None:
    """Remove a generation's states, checkpoint and differences; one removed by halves is removed again."""
    generation = model.generation(beside)
    for table in generation.tables:
        await purge_all(storage, table)
    for subject in {generation.table.name, (beside.get("difference") or {}).get("new", "")} - {""}:
        await forget(storage, subject)
    async with storage.transaction() as transaction:
        await transaction.delete(CHECKPOINTS, generation.checkpoint_key)


async def _fill(storage: Storage, model: ReadModel, generation: Generation, watch: _Watch) -> int:
    """Fold up to where the live generation stands, which is brought up to date where this code can; what
    is left at the end is small."""
    done = await generation.position(storage)
    async with Filling(generation, storage) as filling:
        while (target := await model.catch_up(storage)) - done > 0 and not watch.stopped:
            while done < target and not watch.stopped:
                done = await filling.advance(done, target)
                await watch.look(done, target)
            if await model.position(storage) - done < BATCH:
                break
    return done


async def _compared(storage: Storage, model: ReadModel, generation: Generation) -> Difference:
    """Compare in one snapshot of both at one position; what the live one went ahead by meanwhile is
    applied in the same transaction."""
    new = generation.table
    await forget(storage, new.name)
    for _ in range(TRIES):
        async with storage.transaction(snapshot=True) as transaction:
            live = await model.live_in(transaction)
            upto = await live.position_in(transaction)
            done = await generation.position_in(transaction)
            while done < upto:
                tallies, done = await generation.batch(storage, done, upto)
                await generation.apply(transaction, tallies, done)
            found = None
            if done == upto:
                rows = rows_of(transaction, live.table), rows_of(transaction, new)
                found = await compare(transaction, new.name, *rows, position=upto)
        if found is not None:
            told = {**found.to_dict(), "old": live.table.name, "new": new.name, "at": datetime.now(UTC)}
            await _note(storage, model, difference=told)
            return found
        await model.catch_up(storage)
    raise BusyError(f"read model {model.name!r} and what was rebuilt do not come to the same position")


async def _note(storage: Storage, model: ReadModel, **fields: Any) -> None:
    """Change what the row says of the generation beside."""
    async with storage.transaction() as transaction:
        row = await model.row(transaction, lock=True)
        if row["beside"] is not None:
            row["beside"] = {**row["beside"], **fields}
            await transaction.put(READ_MODEL_ROWS, model.name, decode(encode(row)))


class _Watch:
    """Tells how far a rebuild is, and hears that it should stop."""

    def __init__(self, report: Report | None) -> None:
        self._report = report
        self._began = self._last = time.monotonic()
        self._first: int | None = None
        self.shown: dict[str, Any] | None = None
        self.stopped = False

    async def look(self, done: int, target: int) -> None:
        """After each batch; does something at most twice a second."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._began = done, now
        if now - self._last < REPORT_S:
            return
        self._last = now
        rate = (done - self._first) / (now - self._began) if now > self._began else 0.0
        progress = RebuildProgress(done, target, rate, (target - done) / rate if rate else None)
        self.shown = {"progress": progress.progress, "rate": progress.rate, "eta": progress.eta}
        if self._report is not None and not await self._report(progress):
            self.stopped = True
