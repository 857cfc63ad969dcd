"""`kill -9` of the Event Service under load: what was acknowledged is stored, and stored once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from uuid import uuid4

import httpx2
import pytest

from eventsourcing import EventStore
from eventsourcing.storage.postgres import PostgresStorage
from tests.api.conftest import a_body
from tests.api.service_process import ServiceProcess

CLIENTS = 8


class Client:
    """Posts one event after the other, and repeats each, as it was, until it is acknowledged."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name = url, name
        self.acknowledged: list[str] = []
        self.repeated = 0
        self.stopping = False

    async def run(self) -> None:
        async with httpx2.AsyncClient(base_url=self.url, timeout=10) as http:
            while not self.stopping:
                aggregate = f"{self.name}-{len(self.acknowledged)}"
                by_key = len(self.acknowledged) % 2
                body = a_body(aggregate) if by_key else a_body(aggregate, event_id=str(uuid4()))
                headers = {"Idempotency-Key": uuid4().hex} if by_key else {}
                while not await self._sent(http, body, headers):
                    self.repeated += 1
                    await asyncio.sleep(0.05)
                self.acknowledged.append(aggregate)

    async def _sent(self, http: httpx2.AsyncClient, body: object, headers: dict[str, str]) -> bool:
        try:
            response = await http.post("/events", json=body, headers=headers)
        except httpx2.HTTPError:
            return False
        assert response.status_code in (200, 201, 409, 503), response.text
        return response.status_code in (200, 201)


async def kill_under_load(database_url: str, *, kills: int) -> None:
    """Require that nothing acknowledged is lost and nothing is stored twice."""
    service = ServiceProcess(database_url)
    ready = [await asyncio.to_thread(service.start)]
    clients = [Client(service.url, f"client-{number}") for number in range(CLIENTS)]
    work = [asyncio.create_task(client.run()) for client in clients]
    try:
        for _ in range(kills):
            await asyncio.sleep(0.7)
            await asyncio.to_thread(service.kill)
            ready.append(await asyncio.to_thread(service.start))
        for client in clients:
            client.stopping = True
        await asyncio.gather(*work)
    finally:
        for task in work:
            task.cancel()
        service.stop()
    acknowledged = [aggregate for client in clients for aggregate in client.acknowledged]
    async with EventStore(storage=PostgresStorage(database_url, pool_size=2)) as store:
        stored = Counter([event.aggregate_id async for event in store.get_all_events()])
    lost = [aggregate for aggregate in acknowledged if aggregate not in stored]
    doubled = {aggregate: count for aggregate, count in stored.items() if count > 1}
    repeated = sum(client.repeated for client in clients)
    print(  # noqa: T201 - the figures, with `pytest -s`
        f"{kills} kills: {len(acknowledged)} acknowledged, {repeated} repeats, {len(lost)} lost, "
        f"{len(doubled)} doubled; ready after {max(ready):.1f} s at most"
    )
    assert len(acknowledged) > kills
    assert repeated
    assert (lost, doubled) == ([], {})


@pytest.mark.timeout(240)
async def test_nothing_is_lost_or_doubled_when_the_service_is_killed(new_database: Callable[[], str]) -> None:
    await kill_under_load(new_database(), kills=2)


@pytest.mark.chaos
@pytest.mark.timeout(1200)
async def test_nothing_is_lost_or_doubled_in_twenty_kills(new_database: Callable[[], str]) -> None:
    await kill_under_load(new_database(), kills=20)
