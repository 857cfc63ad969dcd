"""`GET /metrics` tells what the process is at the moment of the scrape."""

from __future__ import annotations

import asyncio

import httpx2
import pytest


async def tasks_told(events: httpx2.AsyncClient) -> int:
    text = (await events.get("/metrics")).text
    return int(float(text.partition("\nes_tasks ")[2].partition("\n")[0]))


@pytest.mark.asyncio(loop_scope="session")
async def test_the_tasks_of_the_loop_are_counted(events: httpx2.AsyncClient) -> None:
    before = await tasks_told(events)
    forgotten = [asyncio.create_task(asyncio.Event().wait()) for _ in range(50)]
    try:
        assert 40 <= await tasks_told(events) - before <= 60  # the service's own come and go
    finally:
        for task in forgotten:
            task.cancel()
