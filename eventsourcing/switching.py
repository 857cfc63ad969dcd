"""Switching: which generation of a read model is live, told to operators and changed by them.

A switch moves one row: readers see all of one generation or all of the other. The one that was live stays
beside it, until the next rebuild, to be switched back to.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from eventsourcing import acts
from eventsourcing.canonical import decode, encode
from eventsourcing.differences import DifferingRow, differing_rows
from eventsourcing.errors import BusyError, StateForbidsError
from eventsourcing.generations import Generation
from eventsourcing.heartbeats import is_stale
from eventsourcing.readmodels import READ_MODEL_ROWS, READ_MODELS, ReadModel, Row
from eventsourcing.rebuilds import TRIES, alone
from eventsourcing.storage.base import StateTransaction, Storage


async def switch(storage: Storage, model: ReadModel, token: UUID | None = None) -> dict[str, Any]:
    """Make the generation beside the live one, at once for every reader; describe the read model then.

    It is brought up to date first, as far as this code can; the one that was live stays beside, so that
    the same call switches back. A token names the request, which switches once. Raises StateForbidsError
    when none is ready, BusyError while a rebuild or another switch of it runs, and when one ran while this
    call waited: two callers who want the same do not switch there and back. Then nothing has changed.
    """
    async with storage.transaction() as transaction:
        wanted = (await model.row(transaction))["beside"]
    async with alone(storage, model):
        async with storage.transaction() as transaction:
            if (known := await acts.recall(transaction, token)) is not None:
                return known
            row = await model.row(transaction)
        if wanted is not None and row["beside"] is not None and row["beside"]["number"] != wanted["number"]:
            raise BusyError(f"read model {model.name!r} was rebuilt or switched by another process")
        generation = _switchable(model, row)
        for _ in range(TRIES):
            if generation.is_current:
                await generation.catch_up(storage)
            if (switched := await _switched(storage, model, generation, token)) is not None:
                return switched
    raise BusyError(f"read model {model.name!r} goes on faster than the one beside it follows")


async def describe(storage: Storage, model: ReadModel) -> dict[str, Any]:
    """A read model for operators: {name, fold_version, live, beside}, of each generation {table,
    fold_version, state, position, behind}, and of the one beside progress and difference where known.

    `difference` counts the rows of the table `old` against those of `new`, whichever of them is live now.
    """
    head = await storage.head()
    async with storage.transaction(snapshot=True) as transaction:
        return await _model_described(transaction, model, head)


async def describe_all(storage: Storage) -> list[dict[str, Any]]:
    """Every read model, see `describe`."""
    return [await describe(storage, model) for model in READ_MODELS]


async def difference_rows(
    storage: Storage, model: ReadModel, *, after: str | None = None, limit: int = 100
) -> list[DifferingRow]:
    """The next rows that differed when the rebuilt generation was compared, beyond the key `after`, by key.

    Raises StateForbidsError when nothing was compared.
    """
    async with storage.transaction() as transaction:
        beside = (await model.row(transaction))["beside"]
    if beside is None or not beside.get("difference"):
        raise StateForbidsError("read model", model.name, "not rebuilt")
    return await differing_rows(storage, beside["difference"]["new"], after=after, limit=limit)


def _switchable(model: ReadModel, row: Row) -> Generation:
    beside = row["beside"]
    if beside is None:
        raise StateForbidsError("read model", model.name, "not rebuilt")
    if beside["state"] not in ("ready", "previous"):
        raise StateForbidsError("rebuild of read model", model.name, _seen_state(beside))
    return model.generation(beside)


async def _switched(
    storage: Storage, model: ReadModel, generation: Generation, token: UUID | None
) -> dict[str, Any] | None:
    """Move the row and describe it, unless the live generation is ahead of one that could follow it."""
    head = await storage.head()
    async with storage.transaction() as transaction:
        row = await model.row(transaction, lock=True)
        live = model.generation(row["live"])
        upto = await live.position_in(transaction, lock=True)
        if generation.is_current and await generation.position_in(transaction) < upto:
            return None
        compared = (row["beside"] or {}).get("difference")
        previous = {"number": live.number, "fold_version": live.fold_version, "state": "previous"}
        changed = Row(
            live={"number": generation.number, "fold_version": generation.fold_version, "state": "live"},
            beside={**previous, "switched_at": datetime.now(UTC), "difference": compared},
            next=row["next"],
            refused=live.fold_version if generation.fold_version < live.fold_version else None,
        )
        await transaction.put(READ_MODEL_ROWS, model.name, decode(encode(changed)))
        described: dict[str, Any] = decode(encode(await _model_described(transaction, model, head)))
        await acts.remember(transaction, token, described)
    return described


async def _model_described(transaction: StateTransaction, model: ReadModel, head: int) -> dict[str, Any]:
    row = await model.row(transaction)
    live = await _described(transaction, model, row["live"], head)
    beside = None if row["beside"] is None else await _described(transaction, model, row["beside"], head)
    return {"name": model.name, "fold_version": model.fold.version, "live": live, "beside": beside}


async def _described(
    transaction: StateTransaction, model: ReadModel, place: dict[str, Any], head: int
) -> dict[str, Any]:
    generation = model.generation(place)
    position = await generation.position_in(transaction)
    return {
        "table": generation.table.name,
        "fold_version": generation.fold_version,
        "state": _seen_state(place),
        "position": position,
        "behind": max(0, head - position),
        **{name: place[name] for name in ("difference", "progress") if place.get(name) is not None},
    }


def _seen_state(place: dict[str, Any]) -> str:
    """The state, interrupted when the rebuild's process stopped beating."""
    if place["state"] == "building" and is_stale(place.get("heartbeat_at")):
        return "interrupted"
    return str(place["state"])
