"""A process that appends without a pause, for the tests that kill it or its server.

Each of its writers appends batches of three events, numbered, under ids that follow from the number, and
prints each number once the store has acknowledged it. A call that fails is made again with the same events.
Run as `python -m tests.faults.workload URL FIRST_NUMBER [FAULT]`.
"""

from __future__ import annotations

import asyncio
import sys
from uuid import NAMESPACE_URL, uuid4, uuid5

from eventsourcing import BaseEvent, EventStore, UnavailableError
from eventsourcing.storage.postgres import PostgresStorage

WRITERS, BATCH = 4, 3
NEW_IDS, EARLY_ANSWERS = "new-ids", "early-answers"
"""The planted faults: new ids on each attempt double events, an answer before the store's own loses some."""


def batch_of(number: int, *, new_ids: bool = False) -> list[BaseEvent]:
    """The events of one numbered call, over aggregates that all writers share."""
    return [
        BaseEvent(
            event_id=uuid4() if new_ids else uuid5(NAMESPACE_URL, f"{number}/{place}"),
            event_type="order.placed",
            aggregate_id=f"order-{(number + place) % 7}",
            aggregate_type="order",
            data={"call": f"{number}/{place}"},
        )
        for place in range(BATCH)
    ]


async def write(store: EventStore, first: int, fault: str) -> None:
    """Append the calls first, first + WRITERS, … for ever."""
    number = first
    while True:
        if fault == EARLY_ANSWERS:
            print(number, flush=True)  # noqa: T201 - the answer to whoever kills us
        await append(store, number, new_ids=fault == NEW_IDS)
        if fault != EARLY_ANSWERS:
            print(number, flush=True)  # noqa: T201 - the answer to whoever kills us
        number += WRITERS


async def append(store: EventStore, number: int, *, new_ids: bool) -> None:
    """Append a call's events; again until they are."""
    while True:
        try:
            await store.append_events(batch_of(number, new_ids=new_ids))
        except UnavailableError:
            await asyncio.sleep(0.02)
        else:
            return


async def main(url: str, first: int, fault: str) -> None:
    """Write until killed."""
    async with EventStore(storage=PostgresStorage(url, append_timeout_s=5)) as store:
        await asyncio.gather(*(write(store, first + n, fault) for n in range(WRITERS)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else ""))
