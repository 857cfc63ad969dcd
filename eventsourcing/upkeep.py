"""Upkeep: a worker keeps the live generation of a read model up to date, and brings a newer one to life."""

from __future__ import annotations

import asyncio

from eventsourcing.readmodels import ReadModel
from eventsourcing.rebuilds import rebuild
from eventsourcing.storage.base import Storage
from eventsourcing.switching import switch

REST_S = 0.02
"""How long a read model that keeps up lets events gather."""

STAND_STILL_S = 1.0
"""How often a worker looks again at a read model that its code cannot carry on."""


async def keep_up(storage: Storage, model: ReadModel) -> None:
    """Apply what is stored and what comes to the live generation, until cancelled.

    A newer version of the fold is first rebuilt beside the live one, compared and switched to, unless an
    operator has switched away from it. Where the live one is of a newer version, it is left alone.
    """
    pause = REST_S
    while True:
        live = await model.live(storage)
        if not live.is_current:
            if not await _taken_over(storage, model):
                await asyncio.sleep(STAND_STILL_S)
            continue
        before = await live.position(storage)
        position = await live.catch_up(storage)
        pause = REST_S if position > before else min(pause * 2, 0.25)
        if await storage.wait(position, timeout_s=1.0):
            await asyncio.sleep(pause)  # longer while what was drawn is not committed


async def _taken_over(storage: Storage, model: ReadModel) -> bool:
    """Bring a newer version of the fold to life; False where that is not for a worker to decide."""
    async with storage.transaction() as transaction:
        row = await model.row(transaction)
    if model.fold.version <= row["live"]["fold_version"] or model.fold.version == row["refused"]:
        return False
    await rebuild(storage, model)
    await switch(storage, model)
    return True
