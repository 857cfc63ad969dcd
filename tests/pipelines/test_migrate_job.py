"""The migrate and rollback jobs: a legacy panel into PostgreSQL, through Dagster."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from eventsourcing.bootstrap import open_system
from eventsourcing.catalogue import MIGRATION_SEQUENCE
from eventsourcing.events import RecordedEvent
from pipelines.jobs import migrate
from pipelines.migration.legacy_panel import create_target_schema, generate_legacy_panel, mapping_path
from resources.migration_journal import MigrationJournal
from tests.databases import execute
from tests.pipelines.conftest import RunJob

MIGRATION = "migration-1"


@dataclass(frozen=True)
class Panel:
    """A generated source, its empty target, and the configuration that migrates one into the other."""

    target_url: str
    planted: dict[str, int]
    config: dict[str, Any]

    def sql(self, statement: str) -> Any:
        """Run a statement on the target; its first value, if it has rows."""
        return next((row[0] for row in execute(self.target_url, statement)), None)


@pytest.fixture
def panel(data_dir: Path, new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> Panel:
    """200 users in the source directory, and the successor's tables."""
    url = new_database().replace("+asyncpg", "+psycopg2")
    monkeypatch.setenv("ESM_TARGET_DATABASE_URL", url)
    create_target_schema(url)
    (data_dir / "sources").mkdir()
    (data_dir / "mappings").mkdir()
    planted = generate_legacy_panel(data_dir / "sources" / "panel.db", users=200, admins=3)
    mapping = mapping_path().read_text().replace("max_quarantine_ratio: 0.1", "max_quarantine_ratio: 0.5")
    (data_dir / "mappings" / "panel.yaml").write_text(mapping)
    return Panel(url, planted, {"mapping": "panel", "source": "panel.db", "migration_id": MIGRATION})


def test_a_migration_is_a_run_and_every_event_names_it(panel: Panel, run_job: RunJob) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        result = run_job("migrate", panel.config, instance=instance)
        run = instance.get_run_by_id(result.run_id)
    assert result.success
    events = _events()
    assert [event.event_type for event in events if event.aggregate_id == MIGRATION] == [*MIGRATION_SEQUENCE]
    assert {event.metadata["dagster_run_id"] for event in events} == {result.run_id}
    assert run is not None
    assert run.tags["migration_id"] == MIGRATION
    assert {run.tags["correlation_id"]} == {str(event.correlation_id) for event in events}
    kinds = Counter(event.event_type for event in events)
    assert kinds["user.migrated"] == panel.sql("SELECT count(*) FROM users")
    (loaded,) = [e for e in result.events_for_node("load") if e.is_successful_output]
    assert "entities" in loaded.step_output_data.metadata


def test_without_an_id_the_migration_is_named_after_the_run(panel: Panel, run_job: RunJob) -> None:
    result = run_job("migrate", {**panel.config, "migration_id": None})
    assert result.success
    started = next(event for event in _events() if event.event_type == "migration.started")
    assert started.aggregate_id == f"migration-{result.run_id.replace('-', '')[:12]}"


def test_names_that_are_not_configured_are_refused(panel: Panel, run_job: RunJob) -> None:
    for name, value in [
        ("source", "nowhere.db"),
        ("source", "../../etc/passwd"),
        ("target", "elsewhere"),
        ("mapping", "nothing"),
    ]:
        result = run_job("migrate", {**panel.config, name: value})
        assert _failures(result) == {"start": f"no {name} {value!r}"}
    assert _events() == []


def test_every_error_of_a_mapping_stands_in_the_failure(
    panel: Panel, data_dir: Path, run_job: RunJob
) -> None:
    file = data_dir / "mappings" / "panel.yaml"
    wrong = file.read_text().replace("      is_sudo: {", "      is_sudoo: {")
    file.write_text(wrong.replace("{from: used_traffic}", "{from: used_trafic}"))
    result = run_job("migrate", panel.config)
    said = _failures(result)["start"].splitlines()
    assert said[0] == "the mapping is wrong in 2 places:"
    assert ["did you mean" in line and line.startswith("panel.yaml:") for line in said[1:]] == [True, True]
    assert _row()["failure"].splitlines() == said


def test_a_failed_stage_is_kept_and_resumed_where_it_failed(panel: Panel, tmp_path: Path) -> None:
    _refuse_users(panel)
    (tmp_path / "instance").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "instance")) as instance:
        job = dg.reconstructable(migrate_job)
        first = dg.execute_job(job, instance, run_config=panel.config)
        assert not first.success
        assert set(_failures(first)) == {"load"}
        assert _types(MIGRATION)[-1] == "migration.failed"
        panel.sql("DROP TRIGGER refuse ON users")
        again = dg.execute_job(
            job,
            instance,
            run_config=panel.config,
            reexecution_options=dg.ReexecutionOptions.from_failure(first.run_id, instance),
        )
        assert again.success
        assert not again.events_for_node("extract"), "what was done is not done again"
    assert _types(MIGRATION)[-1] == "migration.completed"
    assert _types(f"{MIGRATION}:rollback-1") == [], "nothing is undone although Dagster runs the op"


def test_a_failed_stage_is_undone_in_the_run_when_asked(panel: Panel, run_job: RunJob) -> None:
    _refuse_users(panel)
    result = run_job("migrate", {**panel.config, "on_failure": "rollback"})
    assert not result.success
    (said,) = _failures(result).values()
    assert said.endswith("rolled back")
    assert panel.sql("SELECT count(*) FROM admins") == 0
    assert _types(MIGRATION)[-1] == "migration.failed"
    assert _types(f"{MIGRATION}:rollback-1") == ["rollback.initiated", "rollback.completed"]


def test_what_never_began_is_not_undone_but_fails(panel: Panel, run_job: RunJob) -> None:
    panel.sql("INSERT INTO admins (username, hashed_password, is_sudo) VALUES ('somebody', 'x', false)")
    result = run_job("migrate", {**panel.config, "on_failure": "rollback"})
    assert _failures(result) == {"start": "target table 'admins' is not empty (on_conflict: fail)"}
    assert _events() == []


def test_a_finished_migration_is_rolled_back_by_its_id(panel: Panel, run_job: RunJob) -> None:
    assert run_job("migrate", panel.config).success
    result = run_job("rollback", _rollback(MIGRATION))
    assert result.success
    assert panel.sql("SELECT count(*) FROM users") == 0
    assert _types(f"{MIGRATION}:rollback-1") == ["rollback.initiated", "rollback.completed"]
    again = run_job("rollback", _rollback(MIGRATION))
    assert _failures(again) == {"roll_back": f"migration '{MIGRATION}' is rolled back already"}


def test_a_migration_that_never_was_cannot_be_rolled_back(run_job: RunJob) -> None:
    result = run_job("rollback", _rollback("nothing"))
    assert _failures(result) == {"roll_back": "no migration 'nothing'"}


def migrate_job() -> dg.JobDefinition:
    """The job, by a name that Dagster can load again."""
    return migrate


def _rollback(migration_id: str) -> dict[str, Any]:
    return {"ops": {"roll_back": {"config": {"migration_id": migration_id, "reason": "a test"}}}}


def _refuse_users(panel: Panel) -> None:
    """Let the target refuse users, after the admins are loaded."""
    panel.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'no users today'; END $$"
    )
    panel.sql("CREATE TRIGGER refuse BEFORE INSERT ON users EXECUTE FUNCTION refuse()")


def _events() -> list[RecordedEvent]:
    async def read() -> list[RecordedEvent]:
        async with open_system() as system:
            return [event async for event in system.store.get_all_events()]

    return asyncio.run(read())


def _row() -> dict[str, Any]:
    async def read() -> dict[str, Any]:
        async with open_system() as system:
            return await MigrationJournal(system.store.storage).get(MIGRATION) or {}

    return asyncio.run(read())


def _types(aggregate_id: str) -> list[str]:
    return [event.event_type for event in _events() if event.aggregate_id == aggregate_id]


def _failures(result: Any) -> dict[str, str]:
    """What each failed op said."""
    failed = result.filter_events(lambda event: event.is_step_failure)
    return {
        event.step_key: str(event.step_failure_data.user_failure_data.description)
        for event in failed
        if event.step_failure_data.user_failure_data is not None
    }
