"""The migration routes over real Dagster runs: from POST to rollback, and everything that is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
import yaml

from api import event_service
from api.migration_jobs import start_migration
from api.migration_schemas import MigrationBody
from eventsourcing import EventStore, Settings
from eventsourcing.events import new_event_id
from eventsourcing.storage.embedded import EmbeddedPostgres
from eventsourcing.storage.postgres import PostgresStorage
from pipelines.migration.legacy_panel import create_target_schema, generate_legacy_panel, mapping_path
from resources.migration_journal import MigrationJournal
from tests.api.conftest import assert_problem, serving
from tests.api.recorder import Recorder
from tests.databases import execute

MENDED = mapping_path().read_text().replace("on_missing: quarantine", "on_missing: 'null'")
PASSWORD = "canary-connection-password"


@pytest.fixture(scope="module")
def place(postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A data directory with a panel, its mappings and named connections."""
    folder = tmp_path_factory.mktemp("migrations")
    for name in ("sources", "mappings"):
        (folder / name).mkdir()
    generate_legacy_panel(folder / "sources" / "panel.db", users=240, admins=5)
    text_of = mapping_path().read_text().replace("max_quarantine_ratio: 0.1", "max_quarantine_ratio: 0.5")
    (folder / "mappings" / "panel.yaml").write_text(text_of.replace("rows: 1000", "rows: 50"))
    mended = text_of.replace("on_missing: quarantine", "on_missing: 'null'")
    (folder / "mappings" / "mended.yaml").write_text(mended)
    outside = folder / "outside.db"
    generate_legacy_panel(outside, users=200, admins=3)
    (folder / "sources" / "link.db").symlink_to(outside)
    (folder / "mappings" / "link.yaml").symlink_to(folder / "outside.db")
    for database in ("migration_events", "migration_target"):
        postgres_server.ensure_database(database)
    target = postgres_server.url("migration_target", driver="psycopg2")
    create_target_schema(target)
    named = target.replace("postgres:@", f"postgres:{PASSWORD}@")
    (folder / "connections.yaml").write_text(
        yaml.safe_dump({"targets": {"successor": named}, "sources": {"panel": f"sqlite:///{outside}"}})
    )
    return Settings(
        database_url=postgres_server.url("migration_events"),
        data_dir=folder,
        connections_file=folder / "connections.yaml",
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def recorded(place: Settings) -> AsyncIterator[tuple[httpx2.AsyncClient, Recorder]]:
    recorder = Recorder()
    async with serving(event_service.create_app(place, recorder)) as client:
        yield client, recorder


REFUSED = [
    ({"source": "sqlite:////etc/passwd"}, "source"),
    ({"source": "postgresql://someone:hunter2@10.0.0.1/elsewhere"}, "source"),
    ({"source": "../outside.db"}, "source"),
    ({"source": "/etc/passwd"}, "source"),
    ({"source": "link.db"}, "source"),
    ({"source": "nothing.db"}, "source"),
    ({"source": ".."}, "source"),
    ({"target": "postgresql://someone:hunter2@10.0.0.1/elsewhere"}, "target"),
    ({"target": "panel"}, "target"),
    ({"mapping": "../outside.db"}, "mapping"),
    ({"mapping": "/etc/passwd"}, "mapping"),
    ({"mapping": "link.yaml"}, "mapping"),
    ({"mapping": "version: 1"}, "mapping"),
    ({"options": {"chunk": 1}}, "options.chunk"),
    ({"options": {"on_failure": "pray"}}, "options.on_failure"),
    ({"dry_run": 0}, "dry_run"),
    ({"dry_run": "no"}, "dry_run"),
    ({"target_url": "x"}, "target_url"),
    ({"migration_id": "stats"}, "migration_id"),
    ({"migration_id": "a/b"}, "migration_id"),
]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("change", "field"), REFUSED)
async def test_a_caller_can_name_only_what_is_configured(
    recorded: tuple[httpx2.AsyncClient, Recorder], change: dict[str, Any], field: str
) -> None:
    client, recorder = recorded
    before = len(recorder.submitted)
    body = {"mapping": "panel", "source": "panel.db", "target": "successor", **change}
    problem = assert_problem(await client.post("/migrations", json=body), 422, "invalid")
    assert problem["errors"][0]["field"] == field
    assert "hunter2" not in json.dumps(problem)
    assert "10.0.0.1" not in json.dumps(problem)
    assert len(recorder.submitted) == before


@pytest.mark.asyncio(loop_scope="module")
async def test_every_error_of_a_mapping_is_told_and_no_job_started(
    recorded: tuple[httpx2.AsyncClient, Recorder], place: Settings
) -> None:
    client, recorder = recorded
    text_of = (place.data_dir / "mappings" / "panel.yaml").read_text()
    wrong = text_of.replace("emit: USER_MIGRATED", "emit: USER_MOVED").replace("[lower]", "[lowr]")
    (place.data_dir / "mappings" / "wrong.yaml").write_text(wrong)
    before = len(recorder.submitted)
    body = {"mapping": "wrong", "source": "panel.db", "target": "successor"}
    for sent in (body, {**body, "dry_run": True}):
        problem = assert_problem(await client.post("/migrations", json=sent), 422, "invalid")
        assert problem["detail"] == "mapping: is wrong in 2 places"
        emit, transform = problem["errors"]
        assert (emit["field"], emit["in"], emit["pointer"]) == ("mapping", "body", "#/mapping")
        assert emit["path"] == "entities.users.emit"
        assert wrong.splitlines()[emit["line"] - 1].strip() == "emit: USER_MOVED"
        assert "did you mean 'USER_MIGRATED'?" in emit["detail"]
        assert transform["detail"].endswith("unknown transform 'lowr'; did you mean 'lower'?")
    assert len(recorder.submitted) == before


@pytest.mark.asyncio(loop_scope="module")
async def test_under_a_key_a_migration_is_started_once_and_acts_are_done_once(
    recorded: tuple[httpx2.AsyncClient, Recorder],
) -> None:
    client, recorder = recorded
    body = {"mapping": "panel", "source": "panel", "target": "target", "dry_run": True}
    before = len(recorder.submitted)
    key = {"Idempotency-Key": "plan-once"}
    first, again = [await client.post("/migrations", json=body, headers=key) for _ in range(2)]
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert len(recorder.submitted) == before + 1
    other = await client.post("/migrations", json={**body, "source": "panel.db"}, headers=key)
    assert_problem(other, 422, "idempotency-key-reused")
    place = first.headers["location"]
    cancelled = [await client.post(f"{place}/cancel", headers={"Idempotency-Key": "c"}) for _ in range(2)]
    assert [answer.status_code for answer in cancelled] == [202, 202], "without the key the second is 409"
    assert_problem(await client.post(f"{place}/cancel"), 409, "conflict")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_request_whose_server_died_finds_the_migration_that_it_started(
    recorded: tuple[httpx2.AsyncClient, Recorder],
) -> None:
    client, recorder = recorded
    system = client._transport.app.state.system  # type: ignore[attr-defined] # what it opened
    body = MigrationBody(mapping="panel", source="panel", target="target", dry_run=True)
    before, token = len(recorder.submitted), new_event_id()
    first = await start_migration(system, recorder, body, token)
    assert await start_migration(system, recorder, body, token) == first
    assert len(recorder.submitted) == before + 1
    await MigrationJournal(system.store.storage).update(
        first[0], dagster_run_id=None
    )  # died before it said so
    assert await start_migration(system, recorder, body, token) == first
    assert len(recorder.submitted) == before + 1
    assert (await start_migration(system, recorder, body, new_event_id()))[0] != first[0]


@pytest.mark.asyncio(loop_scope="module")
async def test_one_migration_holds_a_target_and_states_forbid_what_they_must(
    recorded: tuple[httpx2.AsyncClient, Recorder], place: Settings
) -> None:
    client, recorder = recorded
    body = {"mapping": "panel", "source": "panel", "target": "target", "migration_id": "held-1"}
    first = await client.post("/migrations", json=body)
    assert first.status_code == 202
    assert first.headers["location"] == "/migrations/held-1"
    assert first.json()["status"] == "started"
    job, config = recorder.submitted[-1]
    assert (job, config["source"], config["target"]) == ("migrate", "panel", "target")
    second = await client.post("/migrations", json={**body, "migration_id": "held-2"})
    held = assert_problem(second, 409, "conflict")
    assert (held["migration_id"], held["holder_status"]) == ("held-1", "queued")
    assert held["detail"].startswith("Migration held-1 holds the target: it is queued since 20")
    assert held["detail"].endswith("or cancel it: POST /migrations/held-1/cancel.")
    assert_problem(await client.get("/migrations/held-2"), 404)
    assert_problem(await client.post("/migrations", json=body), 409, "conflict")
    planned = await client.post("/migrations", json={**body, "migration_id": "plan-1", "dry_run": True})
    assert planned.status_code == 202, "a plan holds nothing"
    assert recorder.submitted[-1][0] == "plan_migration"
    for path in ("resume", "verify", "rollback", "quarantine/retry"):
        assert_problem(await client.post(f"/migrations/held-1/{path}"), 409, "conflict")
        assert_problem(await client.post(f"/migrations/nobody/{path}"), 404, "not-found")
    queued = (await client.get("/migrations/held-1")).json()
    assert (queued["status"], queued["progress"]) == ("queued", 0)
    assert (await client.post("/migrations/held-1/cancel")).status_code == 202
    assert recorder.cancelled
    assert (await client.get("/migrations/held-1")).json()["status"] == "cancelled"
    assert_problem(await client.post("/migrations/held-1/cancel"), 409, "conflict")
    terminal = {"mapping": "m.yaml", "source": "x", "target": "y", "by": "terminal"}
    assert place.database_url is not None
    async with EventStore(storage=PostgresStorage(place.database_url, pool_size=1)) as store:
        await MigrationJournal(store.storage).create("by-hand", terminal, status="failed")
    by_hand = assert_problem(await client.post("/migrations/by-hand/resume"), 409, "conflict")
    assert "terminal" in by_hand["detail"]
    third = await client.post("/migrations", json={**body, "migration_id": "held-3"})
    assert third.status_code == 202, "a cancelled one lets go"
    resumed = await client.post("/migrations/held-1/resume")
    assert assert_problem(resumed, 409, "conflict")["migration_id"] == "held-3"
    assert (await client.post("/migrations/held-3/cancel")).status_code == 202


@pytest.mark.asyncio(loop_scope="module")
async def test_a_run_whose_process_died_reads_as_interrupted_and_is_resumed(
    recorded: tuple[httpx2.AsyncClient, Recorder], place: Settings
) -> None:
    client, recorder = recorded
    request = {"mapping": "panel", "source": "panel", "target": "successor", "on_failure": "keep"}
    assert place.database_url is not None
    async with EventStore(storage=PostgresStorage(place.database_url, pool_size=1)) as store:
        journal = MigrationJournal(store.storage)
        await journal.create("died-1", request, status="running")
        await journal.update("died-1", heartbeat_at="2026-01-01T00:00:00Z")
        assert (await client.get("/migrations/died-1?wait=5")).json()["status"] == "interrupted"
        assert (await client.post("/migrations/died-1/resume")).status_code == 202
        assert recorder.submitted[-1][1] == {**request, "migration_id": "died-1"}
        assert (await client.get("/migrations/died-1")).json()["status"] == "queued"
        undoing = {"migration_id": "died-1", "reason": "why not", "force": False, "dry_run": False}
        await journal.update(
            "died-1", status="rolling_back", heartbeat_at="2026-01-01T00:00:00Z", rollback_asked=undoing
        )
        assert (await client.post("/migrations/died-1/resume")).status_code == 202
        assert recorder.submitted[-1] == ("rollback", {"ops": {"roll_back": {"config": undoing}}})
        await journal.update("died-1", status="failed")


@pytest.mark.asyncio(loop_scope="module")
async def test_the_list_is_paged_newest_first(
    recorded: tuple[httpx2.AsyncClient, Recorder], place: Settings
) -> None:
    client, _ = recorded
    ids = [f"paged-{number}" for number in range(5)]
    for name in ids:
        body = {"mapping": "panel", "source": "panel", "migration_id": name, "dry_run": True}
        assert (await client.post("/migrations", json=body)).status_code == 202
    found: list[str] = []
    link: str | None = "/migrations?limit=2"
    while link and len(found) < 6:
        page = await client.get(link)
        found += [row["migration_id"] for row in page.json()["migrations"]]
        link = page.headers["link"].partition(">")[0].lstrip("<") if "link" in page.headers else None
    assert found[:5] == ids[::-1]


async def test_a_migration_from_its_plan_to_its_rollback(
    place: Settings, new_database: Callable[[], str], tmp_path: Path
) -> None:
    settings = place.model_copy(update={"database_url": new_database()})
    async with serving(event_service.create_app(settings)) as client:
        body = {"mapping": "panel", "source": "panel.db", "target": "successor"}
        plan = (await client.post("/migrations", json={**body, "dry_run": True})).json()
        planned = await ended(client, plan["migration_id"])
        assert planned["status"] == "completed", planned
        assert planned["preview"]["ok"], planned["preview"]["blockers"]

        begun = (await client.post("/migrations", json={**body, "migration_id": "panel-1"})).json()
        row = await ended(client, "panel-1")
        assert row["status"] == "completed", row
        assert (row["progress"], row["steps_completed"], row["total_steps"]) == (100, 8, 8)
        assert row["entities"]["users"]["in"] == 240
        assert row["dagster_run_id"] == begun["dagster_run_id"]
        assert row["report"] == "/migrations/panel-1/report"
        counts = planned["preview"]["entities"]["users"]
        assert {name: row["entities"]["users"][name] for name in counts} == counts

        quarantine = (await client.get("/migrations/panel-1/quarantine?limit=500")).json()["quarantine"]
        assert len(quarantine) == row["quarantined"]
        assert (await client.get("/migrations/panel-1/report")).json()["verification"]["ok"]
        page = await client.get("/migrations/panel-1/report.html")
        assert page.headers["content-type"].startswith("text/html")
        assert "Proven" in page.text
        assert_problem(await client.get("/migrations/panel-1/report.html", headers={"accept": "a/b"}), 406)

        assert (
            await client.post("/migrations/panel-1/quarantine/retry", json={"mapping": "mended"})
        ).is_success
        retried = await ended(client, "panel-1")
        assert retried["status"] == "completed", retried
        assert retried["quarantined"] < row["quarantined"]
        assert retried["mapping"] == "mended"

        on_target(settings, "UPDATE users SET note = 'damaged' WHERE id = (SELECT max(id) FROM users)")
        assert (await client.post("/migrations/panel-1/verify")).status_code == 202
        assert await eventually(client, "panel-1", "verified") is False

        asked = await client.post("/migrations/panel-1/rollback", json={"reason": "a test", "force": True})
        assert asked.status_code == 202
        undone = await ended(client, "panel-1")
        assert undone["status"] == "rolled_back", undone
        assert undone["rollback"]["residual_diff"] == 0
        assert (await client.get("/migrations/panel-1/stats")).json()["status"] == "rolled_back"
        said = "".join(
            [
                (await client.get(path)).text
                for path in ("/migrations", "/migrations/panel-1", "/events?limit=1000")
            ]
        )
        assert PASSWORD not in said


async def test_a_running_migration_is_stopped_in_order_and_goes_on(
    place: Settings, new_database: Callable[[], str]
) -> None:
    target = new_database().replace("+asyncpg", "+psycopg2")
    create_target_schema(target)
    tiny = (place.data_dir / "mappings" / "panel.yaml").read_text().replace("rows: 50", "rows: 4")
    (place.data_dir / "mappings" / "tiny.yaml").write_text(tiny)
    changes = {"database_url": new_database(), "target_database_url": target}
    async with serving(event_service.create_app(place.model_copy(update=changes))) as client:
        body = {"mapping": "tiny", "source": "panel.db", "migration_id": "slow-1"}
        assert (await client.post("/migrations", json=body)).status_code == 202
        for _ in range(1200):
            if (await client.get("/migrations/slow-1")).json()["current_step"] == "load":
                break
            await asyncio.sleep(0.05)
        assert (await client.post("/migrations/slow-1/cancel")).status_code == 202
        row = (await client.get("/migrations/slow-1")).json()
        assert row["status"] == "cancelled", row
        assert row["progress"] < 100
        assert (await client.post("/migrations/slow-1/resume")).status_code == 202
        row = await ended(client, "slow-1")
        assert row["status"] == "completed", row
        stages = [e["event_type"] for e in (await client.get("/events?aggregate_id=slow-1")).json()]
        assert len(stages) == 6, "a stop is no event"


async def ended(client: httpx2.AsyncClient, migration_id: str) -> dict[str, Any]:
    """The migration once nothing works on it."""
    async with asyncio.timeout(100):
        while True:
            row: dict[str, Any] = (await client.get(f"/migrations/{migration_id}?wait=30")).json()
            if row["status"] not in ("queued", "running", "rolling_back"):
                return row


async def eventually(client: httpx2.AsyncClient, migration_id: str, field: str) -> Any:
    """The value of a field once there is one."""
    for _ in range(600):
        value = (await client.get(f"/migrations/{migration_id}")).json()[field]
        if value is not None:
            return value
        await asyncio.sleep(0.1)
    raise AssertionError(field)


def on_target(settings: Settings, statement: str) -> None:
    """Run a statement on the target that these settings name."""
    assert settings.connections_file is not None
    url = yaml.safe_load(settings.connections_file.read_text())["targets"]["successor"]
    execute(url, statement)
