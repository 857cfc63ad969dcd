"""The broker away for a while under load: appends go on, the relay catches up, nothing is given up."""

from __future__ import annotations

import asyncio
import time

import pytest

from deploy.kafka.broker import Broker
from eventsourcing import EventBus, EventStore
from eventsourcing.dead_letters import dead_letters
from eventsourcing.fold_handler import FoldHandler
from eventsourcing.lag import Lag, lags
from eventsourcing.relay import RELAY
from tests.conftest import kafka_config
from tests.factories import draft
from tests.integration.kafka.lab import Versions, all_applied, relayed
from tests.waiting import until

RATE, AGGREGATES = 200, 50
TYPES = ["order.placed", "order.paid", "order.sent"]


@pytest.mark.parametrize(
    ("away_s", "patience_s"),
    [(5, 120), (5, 2), pytest.param(60, 120, marks=pytest.mark.chaos)],
    ids=["5 s", "longer than the producer waits", "60 s"],
)
@pytest.mark.timeout(300)
async def test_the_broker_may_go_away_under_load(
    store: EventStore, kafka_broker: Broker, away_s: int, patience_s: int
) -> None:
    fold = FoldHandler(Versions(), store.storage)
    options = {"delivery.timeout.ms": patience_s * 1000}
    bus = EventBus(kafka_config(kafka_broker.address, kafka_options=options), store=store)
    await bus.subscribe(TYPES, fold, consumer_group="fold")
    writer = Writer(store)
    async with bus:
        writing = asyncio.create_task(writer.write())
        await until(lambda: all_applied(fold, AGGREGATES, 100))
        await asyncio.to_thread(kafka_broker.stop)
        await asyncio.sleep(away_s)
        behind = await relay_lag(store)
        await asyncio.to_thread(kafka_broker.start)
        back = time.monotonic()
        await asyncio.sleep(2)
        writer.stop = True
        await writing
        await relayed(store)
        drained_s = time.monotonic() - back
        await until(lambda: all_applied(fold, AGGREGATES, writer.appended))

    print(  # noqa: T201 - the figures of the run, shown by -s
        f"away {away_s} s: {behind.events} events, {behind.seconds:.1f} s; drained in {drained_s:.1f} s"
    )
    assert behind.events > RATE * (away_s - 2)
    assert behind.seconds > away_s - 2
    assert await dead_letters(store.storage, "fold") == await dead_letters(store.storage, RELAY) == []
    for number in range(AGGREGATES):
        state = await fold.state_of(f"order-{number}")
        assert state is not None
        assert state["versions"] == list(range(1, len(state["versions"]) + 1))


async def relay_lag(store: EventStore) -> Lag:
    """What `esm consumers` shows of the relay."""
    return next(lag for lag in await lags(store.storage) if lag.kind == "relay")


class Writer:
    """Appends at a steady rate; an append that fails fails the test."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self.appended = 0
        self.stop = False

    async def write(self) -> None:
        began = time.monotonic()
        while not self.stop:
            number = self.appended % AGGREGATES
            await self._store.append_event(draft(f"order-{number}", TYPES[self.appended % len(TYPES)]))
            self.appended += 1
            await asyncio.sleep(max(began + self.appended / RATE - time.monotonic(), 0))
