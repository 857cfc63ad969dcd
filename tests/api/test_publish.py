"""POST /events and POST /events/batch."""

from __future__ import annotations

from uuid import uuid4

import httpx2
import pytest

from eventsourcing.testing import a_migration
from tests.api.conftest import a_body, assert_problem
from tests.seats import TYPE, own_registry, release

__all__ = ["own_registry"]

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_publish_answers_the_whole_event(events: httpx2.AsyncClient, unique: str) -> None:
    response = await events.post("/events", json=a_body(unique, metadata={"who": "me"}))
    event = response.json()
    assert response.status_code == 201
    assert response.headers["location"] == f"/events/{event['event_id']}"
    assert response.headers["es-position"] == str(event["position"])
    assert event["event_version"] == 1
    assert event["metadata"] == {"who": "me"}
    assert event["timestamp"].endswith("Z")
    assert event["data"]["started_at"] == event["timestamp"]
    again = await events.get(response.headers["location"])
    assert again.json() == event
    assert again.headers["etag"] == '"1"'


async def test_an_older_payload_that_says_its_version_is_taken_as_the_newest(
    events: httpx2.AsyncClient, unique: str, own_registry: None
) -> None:
    release(2)
    old = {"event_type": TYPE, "aggregate_id": unique, "aggregate_type": "seat"}
    old["data"] = {"passenger": "Ada Lovelace"}  # type: ignore[assignment]  # a body holds any JSON
    unversioned = await events.post("/events", json=old)
    assert "given_name" in str(assert_problem(unversioned, 422, "invalid")["errors"])
    taken = (await events.post("/events", json={**old, "metadata": {"schema_version": 1}})).json()
    assert (taken["data"]["family_name"], taken["metadata"]) == ("Lovelace", {"schema_version": 2})
    unknown = await events.post("/events", json={**old, "metadata": {"schema_version": 3}})
    assert_problem(unknown, 422, "invalid")


async def test_nobody_posts_an_event_past_the_handlers_as_history(
    events: httpx2.AsyncClient, unique: str
) -> None:
    response = await events.post("/events", json=a_body(unique, metadata={"backfilled": True}))
    assert "backfilled" in str(assert_problem(response, 422, "invalid")["errors"])
    batch = await events.post("/events/batch", json=[a_body(unique, metadata={"backfilled": True})])
    assert_problem(batch, 422, "invalid")


async def test_the_same_event_id_again_answers_200_and_stores_nothing(
    events: httpx2.AsyncClient, unique: str
) -> None:
    body = a_body(unique, event_id=str(uuid4()), expected_version="no_stream")
    first = await events.post("/events", json=body)
    second = await events.post("/events", json=body)
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()
    assert second.headers["location"] == first.headers["location"]


async def test_fields_that_are_null_say_as_little_as_fields_left_out(
    events: httpx2.AsyncClient, unique: str
) -> None:
    body = a_body(unique, event_id=str(uuid4()), timestamp=None)
    first = await events.post("/events", json=body)
    again = await events.post("/events", json=body)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()


async def test_an_event_id_with_other_content_is_a_conflict(events: httpx2.AsyncClient, unique: str) -> None:
    body = a_body(unique, event_id=str(uuid4()))
    await events.post("/events", json=body)
    response = await events.post("/events", json={**body, "aggregate_id": f"{unique}-other"})
    assert_problem(response, 409, "event-id-reused")


@pytest.mark.parametrize(
    ("expected", "status"), [("any", 201), (1, 201), ("no_stream", 409), (0, 409), (7, 409)]
)
async def test_the_expected_version_is_held(
    events: httpx2.AsyncClient, unique: str, expected: object, status: int
) -> None:
    await events.post("/events", json=a_body(unique))
    response = await events.post("/events", json=a_body(unique, expected_version=expected))
    if status == 409:
        assert assert_problem(response, 409, "concurrency-conflict")["current_version"] == 1
    else:
        assert response.json()["event_version"] == 2


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"event_type": "no.such.type"}, "event_type"),
        ({"event_type": "Bad Type"}, "event_type"),
        ({"aggregate_id": ""}, "aggregate_id"),
        ({"aggregate_id": "nul\x00"}, "aggregate_id"),
        ({"aggregate_type": None}, "aggregate_type"),
        ({"data": []}, "data"),
        ({"data": {"source_config": {}}}, "data.target_config"),
        ({"data": {"source_config": {"password": "x"}, "target_config": {}}}, "data.source_config"),
        ({"event_id": "zz"}, "event_id"),
        ({"correlation_id": 5}, "correlation_id"),
        ({"timestamp": "yesterday"}, "timestamp"),
        ({"timestamp": 5}, "timestamp"),
        ({"timestamp": "0001-01-01T00:00:00+14:00"}, "timestamp"),
        ({"expected_version": -1}, "expected_version"),
        ({"expected_version": "some"}, "expected_version"),
        ({"expected_version": True}, "expected_version"),
        ({"surplus": 1}, "surplus"),
    ],
)
async def test_a_wrong_field_is_named_and_its_value_not_echoed(
    events: httpx2.AsyncClient, unique: str, changes: dict[str, object], field: str
) -> None:
    response = await events.post("/events", json=a_body(unique, **changes))
    problem = assert_problem(response, 422, "invalid")
    assert problem["errors"][0]["field"] == field
    assert problem["errors"][0]["pointer"] == "#/" + field.replace(".", "/")
    assert "yesterday" not in response.text
    assert unique not in response.text


async def test_a_missing_field_is_named(events: httpx2.AsyncClient, unique: str) -> None:
    body = a_body(unique)
    del body["data"]
    problem = assert_problem(await events.post("/events", json=body), 422)
    assert problem["errors"][0]["field"] == "data"


async def test_a_batch_is_stored_in_order(events: httpx2.AsyncClient, unique: str) -> None:
    batch = [a_body(unique), a_body(unique, expected_version=1), a_body(f"{unique}-b", expected_version=0)]
    response = await events.post("/events/batch", json=batch)
    assert response.status_code == 201
    answer = response.json()
    assert answer["message"] == "Published 3 events successfully"
    stored = (await events.get("/events", params={"aggregate_id": unique})).json()
    assert [event["event_id"] for event in stored] == answer["event_ids"][:2]
    last = (await events.get(f"/events/{answer['event_ids'][2]}")).json()
    assert response.headers["es-position"] == str(last["position"])


async def test_a_batch_again_stores_nothing(events: httpx2.AsyncClient, unique: str) -> None:
    batch = [a_body(unique, event_id=str(uuid4()), expected_version=number) for number in range(3)]
    first = await events.post("/events/batch", json=batch)
    second = await events.post("/events/batch", json=batch)
    assert second.status_code == 201
    assert first.json() == second.json()
    assert len((await events.get("/events", params={"aggregate_id": unique})).json()) == 3


@pytest.mark.parametrize(
    ("wrong", "status", "field"),
    [
        ({"event_type": "no.such.type"}, 422, "event_type"),
        ({"data": {}}, 422, "data.source_config"),
        ({"aggregate_id": 5}, 422, "aggregate_id"),
        ({"expected_version": 9}, 422, "expected_version"),
    ],
)
async def test_a_batch_is_atomic_and_names_the_index(
    events: httpx2.AsyncClient, unique: str, wrong: dict[str, object], status: int, field: str
) -> None:
    batch = [a_body(unique, expected_version=0), a_body(unique), a_body(unique, **wrong)]
    problem = assert_problem(await events.post("/events/batch", json=batch), status)
    assert problem["index"] == 2
    assert problem["errors"][0]["pointer"] == f"#/2/{field.replace('.', '/')}"
    assert (await events.get("/events", params={"aggregate_id": unique})).json() == []


async def test_a_conflict_in_a_batch_names_the_index(events: httpx2.AsyncClient, unique: str) -> None:
    known = a_body(unique, event_id=str(uuid4()))
    await events.post("/events", json=known)
    other = a_body(f"{unique}-other")
    late = await events.post("/events/batch", json=[other, a_body(unique, expected_version="no_stream")])
    problem = assert_problem(late, 409, "concurrency-conflict")
    assert (problem["index"], problem["current_version"]) == (1, 1)
    reused = await events.post("/events/batch", json=[other, {**known, "aggregate_type": "other"}])
    assert assert_problem(reused, 409, "event-id-reused")["index"] == 1
    assert (await events.get("/events", params={"aggregate_id": f"{unique}-other"})).json() == []


async def test_a_batch_has_limits(events: httpx2.AsyncClient, unique: str) -> None:
    assert_problem(await events.post("/events/batch", json=[]), 422)
    assert_problem(await events.post("/events/batch", json=a_body(unique)), 422)
    assert_problem(await events.post("/events/batch", json=[a_body(unique)] * 1001), 413, "too-large")


async def test_an_event_that_is_too_large_is_refused(events: httpx2.AsyncClient, unique: str) -> None:
    data = {"source_config": {"x": "y" * 800_000}, "target_config": {}}
    problem = assert_problem(await events.post("/events", json=a_body(unique, data=data)), 422)
    assert problem["errors"][0]["field"] == "data"


async def test_posted_migrations_show_in_the_statistics(events: httpx2.AsyncClient, unique: str) -> None:
    names = ("event_id", "event_type", "aggregate_id", "aggregate_type", "correlation_id", "data")
    dumps = [event.model_dump(mode="json") for event in a_migration(unique, users=3)]
    batch = [{name: dump[name] for name in names} for dump in dumps]
    assert (await events.post("/events/batch", json=batch)).status_code == 201
    stats = (await events.get(f"/migrations/{unique}/stats")).json()
    assert (stats["status"], stats["user_count"], stats["imported_count"]) == ("completed", 3, 3)
    assert (await events.get("/migrations/stats")).json()[unique] == stats
