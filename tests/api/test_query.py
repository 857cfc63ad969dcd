"""GET /events with its filters and pages, one event, and the statistics of the store."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import httpx2
import pytest

from eventsourcing import EventStore, MigrationStartedEvent, UserMigratedEvent
from eventsourcing.readmodels import USER_MIGRATIONS_MODEL
from tests.api.conftest import a_body, assert_problem

pytestmark = pytest.mark.asyncio(loop_scope="session")

T0 = datetime(2023, 1, 1, tzinfo=UTC)


async def a_history(store: EventStore, unique: str) -> dict[str, Any]:
    """Five users of one correlation, a day apart, two versions each."""
    correlation = uuid4()
    events = [
        UserMigratedEvent(
            user_id=f"{unique}-{number}",
            username=f"user{number}",
            source_data={"round": turn},
            target_data={},
            correlation_id=correlation,
            timestamp=T0 + timedelta(days=number),
        )
        for turn in (1, 2)
        for number in range(5)
    ]
    recorded = await store.append_events(events)
    return {"correlation": str(correlation), "positions": [event.position for event in recorded]}


def ids(response: httpx2.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [event["event_id"] for event in response.json()]


async def all_pages(client: httpx2.AsyncClient, path: str, **params: Any) -> list[Any]:
    """Follow the links to the end; the entries of every page."""
    response = await client.get(path, params=params)
    pages = [response.json()]
    while "next" in response.links:
        response = await client.get(response.links["next"]["url"])
        assert response.status_code == 200, response.text
        pages.append(response.json())
    return pages


async def test_filters_combine_with_and(events: httpx2.AsyncClient, stored: EventStore, unique: str) -> None:
    made = await a_history(stored, unique)
    everything: dict[str, Any] = {"correlation_id": made["correlation"]}
    assert len(ids(await events.get("/events", params=everything))) == 10
    cases: list[tuple[dict[str, Any], int]] = [
        ({"aggregate_id": f"{unique}-1"}, 2),
        ({"aggregate_id": f"{unique}-1", "from_version": 2}, 1),
        ({"aggregate_id": f"{unique}-1", "to_version": 1}, 1),
        ({"event_types": "user.migrated,admin.migrated"}, 10),
        ({"event_types": ["admin.migrated", "user.migrated"]}, 10),
        ({"event_types": "admin.migrated"}, 0),
        ({"aggregate_type": "user", "from_version": 2}, 5),
        ({"aggregate_type": "admin"}, 0),
        ({"from_timestamp": "2023-01-02T00:00:00Z", "to_timestamp": "2023-01-03T00:00:00+00:00"}, 4),
        ({"from_timestamp": "2023-01-05"}, 2),
    ]
    for narrower, count in cases:
        found = ids(await events.get("/events", params={**everything, **narrower}))
        assert len(found) == count, narrower


async def test_an_unescaped_offset_is_understood(events: httpx2.AsyncClient, unique: str) -> None:
    await events.post("/events", json=a_body(unique, timestamp="2023-01-01T02:00:00+02:00"))
    window = "from_timestamp=2023-01-01T00:00:00+00:00&to_timestamp=2023-01-01T00:00:00"
    path = f"/events?aggregate_id={unique}&{window}"
    assert len(ids(await events.get(path))) == 1


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 3, 5, 10, 11])
async def test_pages_hold_everything_once(
    events: httpx2.AsyncClient, stored: EventStore, unique: str, order: str, limit: int
) -> None:
    made = await a_history(stored, unique)
    pages = await all_pages(events, "/events", correlation_id=made["correlation"], order=order, limit=limit)
    positions = [event["position"] for page in pages for event in page]
    assert positions == sorted(made["positions"], reverse=order == "desc")
    assert all(len(page) == limit for page in pages[:-1])
    assert pages[-1]


@pytest.mark.parametrize(
    ("order", "bounds"), [("asc", {}), ("desc", {}), ("asc", {"from_version": 2, "to_version": 6})]
)
async def test_pages_of_one_aggregate(
    events: httpx2.AsyncClient, unique: str, order: str, bounds: dict[str, int]
) -> None:
    await events.post("/events/batch", json=[a_body(unique)] * 7)
    pages = await all_pages(events, "/events", aggregate_id=unique, order=order, limit=3, **bounds)
    versions = [event["event_version"] for page in pages for event in page]
    expected = list(range(bounds.get("from_version", 1), bounds.get("to_version", 7) + 1))
    assert versions == (expected if order == "asc" else expected[::-1])


async def test_a_page_is_bounded_in_bytes(
    events: httpx2.AsyncClient, stored: EventStore, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await a_history(stored, unique)
    monkeypatch.setattr("api.paging.MAX_PAGE_BYTES", 1000)
    pages = await all_pages(events, "/events", correlation_id=made["correlation"])
    assert [event["position"] for page in pages for event in page] == made["positions"]
    assert len(pages) > 2


async def test_pages_miss_nothing_that_commits_late(
    events: httpx2.AsyncClient, stored: EventStore, service_database: str, unique: str
) -> None:
    """An append in flight holds positions below ones that are committed: the pages wait for it."""
    correlation = uuid4()

    def event(number: int) -> MigrationStartedEvent:
        return MigrationStartedEvent(
            migration_id=f"{unique}-{number}", source_config={}, target_config={}, correlation_id=correlation
        )

    await stored.append_event(event(0))
    slow = await asyncpg.connect(service_database.replace("+asyncpg", ""))
    try:
        transaction = slow.transaction()
        await transaction.start()
        await slow.execute(
            "INSERT INTO events (event_id, event_type, aggregate_id, aggregate_type, event_version,"
            " timestamp, correlation_id, metadata, data)"
            " VALUES ($1, 'migration.started', $2, 'migration', 1, now(), $3, '{}', '{}')",
            uuid4(),
            f"{unique}-slow",
            correlation,
        )
        late = await stored.append_event(event(1))
        params: dict[str, Any] = {"correlation_id": str(correlation), "limit": 1}
        before = await all_pages(events, "/events", **params)
        assert [page[0]["aggregate_id"] for page in before] == [f"{unique}-0"]
        reached = {**params, "min_position": late.position}
        waiting = asyncio.create_task(events.get("/events", params=reached))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await transaction.commit()
    finally:
        await slow.close()  # else it would hold every reader of the session back
    first = await waiting
    assert "next" in first.links
    after = await all_pages(events, "/events", **params)
    assert [page[0]["aggregate_id"] for page in after] == [f"{unique}-{name}" for name in ("0", "slow", "1")]


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"limit": 1001}, "limit"),
        ({"limit": 0}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"order": "up"}, "order"),
        ({"cursor": "nonsense"}, "cursor"),
        ({"cursor": "é"}, "cursor"),
        ({"correlation_id": "x"}, "correlation_id"),
        ({"event_types": "user.migrated,Bad!"}, "event_types.1"),
        ({"from_timestamp": "soon"}, "from_timestamp"),
        ({"from_version": 10**30}, "from_version"),
        ({"min_position": -1}, "min_position"),
        ({"aggregate_id": "nul\x00"}, "aggregate_id"),
        ({"aggregateid": "x"}, "aggregateid"),
    ],
)
async def test_a_wrong_parameter_is_named(
    events: httpx2.AsyncClient, params: dict[str, Any], field: str
) -> None:
    problem = assert_problem(await events.get("/events", params=params), 422, "invalid")
    assert problem["errors"][0]["field"] == field
    assert problem["errors"][0]["in"] == "query"


async def test_a_cursor_belongs_to_its_filters(events: httpx2.AsyncClient, unique: str) -> None:
    await events.post("/events/batch", json=[a_body(unique)] * 3)
    response = await events.get("/events", params={"aggregate_id": unique, "limit": 1})
    cursor = httpx2.URL(response.links["next"]["url"]).params["cursor"]
    assert ids(await events.get("/events", params={"aggregate_id": unique, "limit": 2, "cursor": cursor}))
    assert_problem(await events.get("/events", params={"limit": 1, "cursor": cursor}), 422)


async def test_a_position_that_nobody_was_given_is_503(
    events: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.dependencies.POSITION_WAIT_S", 0.1)
    for path in ("/events", "/events/stats", "/migrations/stats", "/users/migrations"):
        response = await events.get(path, params={"min_position": 10**12})
        assert_problem(response, 503, "position-not-reached")
        assert int(response.headers["retry-after"]) > 0


async def test_one_event(events: httpx2.AsyncClient, unique: str) -> None:
    event = (await events.post("/events", json=a_body(unique))).json()
    path = f"/events/{event['event_id']}"
    response = await events.get(path, params={"min_position": event["position"]})
    assert (response.json(), response.headers["etag"]) == (event, '"1"')
    assert (await events.get(path, headers={"If-None-Match": '"1"'})).status_code == 304
    assert_problem(await events.get(f"/events/{uuid4()}"), 404, "not-found")
    assert_problem(await events.get("/events/no-uuid"), 422, "invalid")


async def test_event_statistics_count_the_callers_own(events: httpx2.AsyncClient, unique: str) -> None:
    before = (await events.get("/events/stats")).json()
    await events.post("/events", json=a_body(unique))
    after = (await events.get("/events/stats")).json()
    assert after["total_events"] == before["total_events"] + 1
    assert (
        after["events_by_type"]["migration.started"]
        == before["events_by_type"].get("migration.started", 0) + 1
    )
    assert after["events_by_aggregate_type"]["migration"] > 0
    assert datetime.fromisoformat(after["latest_event_timestamp"]).tzinfo is not None


async def test_views_of_users_and_admins_in_pages(events: httpx2.AsyncClient, unique: str) -> None:
    payload = {"username": "ada", "source_data": {"id": 1}, "target_data": {"id": 2}}
    rolled_back = {"rollback_id": "r", "migration_id": unique, "action": "deleted"}
    for kind in ("user", "admin"):
        keys = [f"{unique}-{number}" for number in range(6)]
        body: dict[str, Any] = {"event_type": f"{kind}.migrated", "aggregate_type": kind, "data": payload}
        batch = [{**body, "aggregate_id": f"{kind}-{key}"} for key in keys]
        gone: dict[str, Any] = {
            "event_type": f"{kind}.rolled_back",
            "aggregate_type": kind,
            "data": rolled_back,
        }
        batch += [{**gone, "aggregate_id": f"{kind}-{key}"} for key in keys[1:5]]
        assert (await events.post("/events/batch", json=batch)).status_code == 201
        pages = await all_pages(events, f"/{kind}s/migrations", limit=2)
        view = {key: state for page in pages for key, state in page.items()}
        mine = {key: state for key, state in view.items() if unique in key}
        assert sorted(mine) == [f"{kind}-{keys[0]}", f"{kind}-{keys[5]}"]
        assert mine[f"{kind}-{keys[0]}"].keys() == {"username", "migrated_at", "source_data", "target_data"}
        assert all(len(page) == 2 for page in pages[:-1])


async def test_a_page_looks_at_a_bounded_number_of_keys(
    events: httpx2.AsyncClient, stored: EventStore, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await events.get("/users/migrations")
    async with stored.storage.transaction() as transaction:
        await transaction.put_many(USER_MIGRATIONS_MODEL.table, {f"a-{unique}-{n:02}": {} for n in range(50)})
        await transaction.put(USER_MIGRATIONS_MODEL.table, f"a-{unique}-99", {"username": "last"})
    monkeypatch.setattr("api.paging.MAX_SCANNED", 10)
    pages = await all_pages(events, "/users/migrations", limit=4)
    assert f"a-{unique}-99" in {key for page in pages for key in page}


async def test_an_unknown_migration_is_404(events: httpx2.AsyncClient, unique: str) -> None:
    for name in (unique, "a/b", "stats/stats"):
        problem = assert_problem(await events.get(f"/migrations/{name}/stats"), 404, "not-found")
        assert problem["detail"] == "Migration not found"


async def test_a_migration_id_may_hold_a_slash(events: httpx2.AsyncClient, unique: str) -> None:
    await events.post("/events", json=a_body(f"{unique}/a b"))
    stats = await events.get(f"/migrations/{unique}%2Fa%20b/stats")
    assert stats.json()["status"] == "started"
