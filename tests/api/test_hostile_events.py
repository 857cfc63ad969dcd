"""No event that the service takes may stop a read model, or hold the service up."""

from __future__ import annotations

import random
import string

import httpx2
import pytest

from tests.api.conftest import a_body, assert_problem

pytestmark = pytest.mark.asyncio(loop_scope="session")

HUGE = "".join(random.Random(1).choices(string.ascii_letters, k=50_000))  # must not compress

EXTRACTED = {"source_type": "sqlite", "extraction_stats": {}}


@pytest.mark.parametrize(
    "data",
    [
        {"record_count": 2**63, **EXTRACTED},
        {"record_count": -5, **EXTRACTED},
        {"record_count": 1, "migration_id": HUGE, **EXTRACTED},
        {"record_count": 1, "migration_id": "a\x1fb", **EXTRACTED},
        {"record_count": 1, "migration_id": {"a": 1}, **EXTRACTED},
        {"record_count": 1, "source_type": "x", "extraction_stats": {"deep": [[[[[[[[{}]]]]]]]]}},
    ],
)
async def test_whatever_is_stored_the_statistics_go_on(
    events: httpx2.AsyncClient, unique: str, data: dict[str, object]
) -> None:
    body = {**a_body(unique), "event_type": "data.extracted", "data": data}
    for _ in range(3):
        assert (await events.post("/events", json=body)).status_code == 201
    assert (await events.post("/events", json=a_body(unique))).status_code == 201
    stats = await events.get(f"/migrations/{unique}/stats")
    assert stats.status_code == 200
    assert 0 <= stats.json()["extracted_count"] < 2**53
    assert (await events.get("/events/stats")).status_code == 200


@pytest.mark.timeout(60)  # quadratic, it takes minutes
@pytest.mark.parametrize("text", ["y" * 700_000, "://" * 200_000, "a:" * 300_000, "://a:" * 100_000])
async def test_long_texts_are_checked_in_linear_time(
    events: httpx2.AsyncClient, unique: str, text: str
) -> None:
    data = {"source_config": {"x": text}, "target_config": {}}
    response = await events.post("/events", json=a_body(unique, data=data))
    assert response.status_code in (201, 422)


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
async def test_moments_outside_the_calendar_are_named(
    events: httpx2.AsyncClient, unique: str, moment: str
) -> None:
    data = {"source_config": {}, "target_config": {}, "started_at": moment}
    problem = assert_problem(await events.post("/events", json=a_body(unique, data=data)), 422, "invalid")
    assert problem["errors"][0]["field"] == "data.started_at"
