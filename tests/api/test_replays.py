"""Replays, snapshots and sequence checks over HTTP."""

from __future__ import annotations

import re
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import pytest_asyncio

from eventsourcing import EventStore, EventType
from eventsourcing.replays import ReplayJournal, ReplayRequest
from eventsourcing.testing import a_migration
from tests.api.conftest import InlineLauncher, assert_problem

pytestmark = pytest.mark.asyncio(loop_scope="session")

SEQUENCE = [
    "migration.started",
    "data.extracted",
    "data.transformed",
    "data.validated",
    "data.imported",
    "migration.completed",
]


@pytest_asyncio.fixture(loop_scope="session")
async def migration(stored: EventStore, unique: str) -> str:
    """The id of a finished migration of two users."""
    await stored.append_events(a_migration(unique))
    return unique


async def replayed(replays: httpx2.AsyncClient, **request: Any) -> dict[str, Any]:
    """Start a replay and wait for its end."""
    response = await replays.post("/replay", json=request)
    assert response.status_code == 202, response.text
    found = await replays.get(response.headers["location"], params={"wait": 30})
    row: dict[str, Any] = found.json()
    return row


async def test_a_replay_runs_to_its_end(replays: httpx2.AsyncClient, migration: str) -> None:
    response = await replays.post("/replay", json={"replay_type": "aggregate", "aggregate_id": migration})
    started = response.json()
    assert response.status_code == 202
    assert started.keys() == {"replay_id", "status", "message"}
    assert started["status"] == "started"
    assert re.fullmatch(r"replay_\d{8}_\d{6}_\d+", started["replay_id"])
    assert response.headers["location"] == f"/replay/{started['replay_id']}"
    row = (await replays.get(response.headers["location"], params={"wait": 30})).json()
    assert row["status"] == "completed"
    assert (row["total_events"], row["processed_events"], row["failed_events"]) == (6, 6, 0)
    assert (row["success_rate"], row["progress"], row["errors"], row["error_count"]) == (100, 100, [], 0)
    assert list(row["state_hash"]) == ["MigrationEventHandler"]
    assert row["end_time"] >= row["start_time"]
    assert row["dagster_run_id"]


async def test_every_selector(replays: httpx2.AsyncClient, stored: EventStore, migration: str) -> None:
    started = (await stored.get_events(migration))[0]
    aggregate = {"replay_type": "aggregate", "aggregate_id": migration}
    assert (await replayed(replays, **aggregate, from_version=2, to_version=3))["total_events"] == 2
    linked = await replayed(replays, replay_type="correlation", correlation_id=str(started.event_id))
    assert linked["total_events"] == 7
    by_type = await replayed(
        replays,
        replay_type="type",
        event_types=["migration.started"],
        from_timestamp=started.timestamp.isoformat(),
        to_timestamp=started.timestamp.isoformat(),
    )
    assert by_type["total_events"] >= 1
    dry = await replayed(replays, **aggregate, dry_run=True)
    assert (dry["total_events"], dry["state_hash"]) == (6, {})
    named = await replayed(replays, **aggregate, handlers=["MigrationEventHandler"])
    assert named["state_hash"]
    assert (await replayed(replays, replay_type="all", dry_run=True))["total_events"] >= 8


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"replay_type": "aggregate"}, "aggregate_id"),
        ({"replay_type": "type"}, "event_types"),
        ({"replay_type": "type", "event_types": []}, "event_types"),
        ({"replay_type": "correlation"}, "correlation_id"),
        ({"replay_type": "some"}, "replay_type"),
        ({}, "replay_type"),
        ({"replay_type": "all", "handlers": ["Nobody"]}, "handlers"),
        ({"replay_type": "all", "batch_size": 0}, "batch_size"),
        ({"replay_type": "all", "max_retries": -1}, "max_retries"),
        ({"replay_type": "all", "delay_between_batches": 1e9}, "delay_between_batches"),
        ({"replay_type": "aggregate", "aggregate_id": "x", "from_version": 2**40}, "from_version"),
        ({"replay_type": "all", "from_timestamp": "once"}, "from_timestamp"),
        ({"replay_type": "all", "surplus": 1}, "surplus"),
    ],
)
async def test_a_wrong_request_names_what_is_wrong(
    replays: httpx2.AsyncClient, body: dict[str, Any], word: str
) -> None:
    problem = assert_problem(await replays.post("/replay", json=body), 422, "invalid")
    assert word in problem["detail"]
    assert "Nobody" not in str(problem)


async def test_replays_are_listed_newest_first_in_pages(
    replays: httpx2.AsyncClient, stored: EventStore
) -> None:
    journal = ReplayJournal(stored.storage)
    made = [await journal.create(ReplayRequest(replay_type="all")) for _ in range(5)]
    response = await replays.get("/replay", params={"limit": 2})
    listed: list[str] = []
    while True:
        page = response.json()["replays"]
        assert page[0].keys() == {"replay_id", "status", "replay_type", "start_time", "end_time"}
        listed += [row["replay_id"] for row in page]
        if "next" not in response.links:
            break
        response = await replays.get(response.links["next"]["url"])
    assert listed[:5] == made[::-1]
    assert len(listed) == len(set(listed))
    assert_problem(await replays.get("/replay", params={"limit": 1001}), 422)
    assert_problem(await replays.get("/replay", params={"cursor": "x"}), 422)


async def test_a_running_replay_really_stops(
    replays: httpx2.AsyncClient, launcher: InlineLauncher, migration: str
) -> None:
    slow = {"batch_size": 1, "delay_between_batches": 0.6}
    body = {"replay_type": "aggregate", "aggregate_id": migration, **slow}
    path = (await replays.post("/replay", json=body)).headers["location"]
    running = (await replays.get(path, params={"wait": 1})).json()
    assert running["status"] == "running"
    response = await replays.delete(path)
    assert response.status_code == 200
    assert response.json().keys() == {"message"}
    stopped = (await replays.get(path)).json()
    assert stopped["status"] == "cancelled"
    assert stopped["processed_events"] < 6
    assert all(run.done() for run in launcher.runs.values())
    assert_problem(await replays.delete(path), 409, "conflict")


async def test_a_replay_that_does_not_obey_is_ended(
    replays: httpx2.AsyncClient,
    launcher: InlineLauncher,
    migration: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("api.jobs.OBEY_S", 0.5)
    body = {"replay_type": "aggregate", "aggregate_id": migration, "batch_size": 1}
    path = (await replays.post("/replay", json={**body, "delay_between_batches": 3600})).headers["location"]
    assert (await replays.get(path, params={"wait": 0.5})).json()["status"] == "running"
    assert (await replays.delete(path)).status_code == 200
    assert (await replays.get(path)).json()["status"] == "cancelled"
    assert all(run.done() for run in launcher.runs.values())


async def test_a_cancelled_replay_is_resumed_to_its_end(
    replays: httpx2.AsyncClient, launcher: InlineLauncher, stored: EventStore, migration: str
) -> None:
    body = {"replay_type": "aggregate", "aggregate_id": migration}
    whole = await replayed(replays, **body)
    slow = {"batch_size": 1, "delay_between_batches": 0.4}
    path = (await replays.post("/replay", json={**body, **slow})).headers["location"]
    assert_problem(await replays.post(f"{path}/resume"), 409, "conflict")
    assert (await replays.get(path, params={"wait": 1})).json()["status"] == "running"
    assert (await replays.delete(path)).status_code == 200
    before = (await replays.get(path)).json()
    assert before["processed_events"] < 6
    resumed = await replays.post(f"{path}/resume")
    assert resumed.status_code == 202
    assert resumed.headers["location"] == path
    after = (await replays.get(path, params={"wait": 30})).json()
    assert (after["status"], after["total_events"]) == ("completed", 6)
    assert after["state_hash"] == whole["state_hash"]
    assert after["dagster_run_id"] != before["dagster_run_id"]
    assert_problem(await replays.post(f"{path}/resume"), 409, "conflict")
    assert_problem(await replays.post("/replay/replay_20231201_120000_0/resume"), 404, "not-found")
    assert_problem(await replays.post("/replay/nonsense/resume"), 404, "not-found")


async def test_a_resumption_whose_job_does_not_start_can_be_tried_again(
    replays: httpx2.AsyncClient, launcher: InlineLauncher, stored: EventStore, migration: str
) -> None:
    journal = ReplayJournal(stored.storage)
    replay_id = await journal.create(ReplayRequest(replay_type="aggregate", aggregate_id=migration))
    await journal.request_cancel(replay_id)
    launcher.refuses = True
    try:
        assert_problem(await replays.post(f"/replay/{replay_id}/resume"), 503)
    finally:
        launcher.refuses = False
    assert (await replays.get(f"/replay/{replay_id}")).json()["status"] == "failed"
    assert (await replays.post(f"/replay/{replay_id}/resume")).status_code == 202
    row = (await replays.get(f"/replay/{replay_id}", params={"wait": 30})).json()
    assert (row["status"], row["total_events"]) == ("completed", 6)


async def test_unknown_replays_are_404(replays: httpx2.AsyncClient) -> None:
    for name in ("replay_20231201_120000_0", "nonsense", "replay_20231201_120000_x"):
        assert_problem(await replays.get(f"/replay/{name}"), 404, "not-found")
        assert_problem(await replays.delete(f"/replay/{name}"), 404, "not-found")
    known = "/replay/replay_20231201_120000_0"
    assert_problem(await replays.get(known, params={"wait": 61}), 422)


async def test_a_snapshot_is_taken_and_found_again(replays: httpx2.AsyncClient, migration: str) -> None:
    response = await replays.post("/snapshot", json={"aggregate_id": migration, "up_to_version": 50})
    snapshot = response.json()
    assert response.status_code == 201
    assert {
        "aggregate_id",
        "version",
        "position",
        "snapshot_time",
        "replay_result",
        "state",
    } <= snapshot.keys()
    assert (snapshot["version"], snapshot["state"]["user_count"]) == (6, 2)
    assert (await replays.get(response.headers["location"])).json() == snapshot
    assert (await replays.get(f"/snapshot/{migration}")).json() == snapshot


async def test_snapshot_errors(replays: httpx2.AsyncClient, unique: str) -> None:
    assert_problem(await replays.post("/snapshot", json={"aggregate_id": unique}), 404, "not-found")
    assert_problem(await replays.get(f"/snapshot/{unique}"), 404, "not-found")
    assert_problem(await replays.get("/snapshot/%00"), 422)
    for body in ({}, {"aggregate_id": ""}, {"aggregate_id": unique, "up_to_version": 0}):
        assert_problem(await replays.post("/snapshot", json=body), 422, "invalid")


async def test_sequences_are_compared(replays: httpx2.AsyncClient, migration: str) -> None:
    body = {"aggregate_id": migration, "expected_sequence": SEQUENCE}
    valid = await replays.post("/validate-sequence", json=body)
    assert valid.status_code == 200
    assert valid.json() == {
        "aggregate_id": migration,
        "is_valid": True,
        "expected_sequence": SEQUENCE,
        "actual_sequence": SEQUENCE,
        "differences": [],
    }
    body = {"aggregate_id": migration, "expected_sequence": [*SEQUENCE[:5], "migration.failed", "x.y"]}
    wrong = (await replays.post("/validate-sequence", json=body)).json()
    assert not wrong["is_valid"]
    assert wrong["differences"] == [
        {"position": 5, "expected": "migration.failed", "actual": EventType.MIGRATION_COMPLETED},
        {"position": 6, "expected": "x.y", "actual": None},
    ]


async def test_sequence_errors(replays: httpx2.AsyncClient, unique: str) -> None:
    body: dict[str, Any] = {"aggregate_id": unique, "expected_sequence": SEQUENCE}
    assert_problem(await replays.post("/validate-sequence", json=body), 404, "not-found")
    for wrong in ({"aggregate_id": unique}, {**body, "expected_sequence": ["Bad!"]}, {**body, "x": 1}):
        assert_problem(await replays.post("/validate-sequence", json=wrong), 422, "invalid")


@pytest.mark.parametrize(
    ("params", "headers", "status"),
    [
        ({"after": "soon"}, {}, 422),
        ({"after": "-1"}, {}, 422),
        ({"correlation_id": "x"}, {}, 422),
        ({"event_types": "Bad!"}, {}, 422),
        ({"surplus": "1"}, {}, 422),
        ({}, {"Last-Event-ID": "abc"}, 422),
        ({"after": "9" * 18}, {}, 409),
        ({}, {"Last-Event-ID": "9" * 18}, 409),
        ({}, {"Accept": "application/json"}, 406),
    ],
)
async def test_a_stream_that_cannot_begin_is_a_problem(
    replays: httpx2.AsyncClient, params: dict[str, str], headers: dict[str, str], status: int
) -> None:
    problem = assert_problem(await replays.get("/events/stream", params=params, headers=headers), status)
    if status == 409:
        assert problem["type"] == "/problems/cursor-ahead"


async def test_ids_may_hold_any_character(
    replays: httpx2.AsyncClient, stored: EventStore, unique: str
) -> None:
    odd = f"{unique}/a b?c#ü%"
    await stored.append_events(a_migration(odd, users=0))
    response = await replays.post("/snapshot", json={"aggregate_id": odd})
    assert (await replays.get(response.headers["location"])).json()["aggregate_id"] == odd
    assert_problem(await replays.get(f"/snapshot/{uuid4()}"), 404)
