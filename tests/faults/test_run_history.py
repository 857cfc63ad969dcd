"""The history of a run that was said to have ended outlives the database server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from dagster import DagsterRunStatus
from sqlalchemy.engine import make_url

from api.embedded_launcher import EmbeddedLauncher
from api.lanes import close_instance, open_instance
from eventsourcing.bootstrap import open_system
from eventsourcing.config import Settings
from eventsourcing.testing import a_migration
from resources.dagster_home import prepare_dagster_home
from tests.servers import NEWEST, new_database, server_of


@pytest.mark.timeout(180)
async def test_a_run_that_has_ended_is_kept_though_the_server_is_killed_at_once(tmp_path: Path) -> None:
    with server_of(NEWEST) as server:
        server.start()
        runs = make_url(new_database(server)).set(drivername="postgresql+psycopg2")
        settings = Settings(
            database_url=new_database(server),
            dagster_database_url=runs.render_as_string(hide_password=False),
            data_dir=tmp_path,
        )
        async with open_system(settings) as system:
            await system.store.append_events(a_migration())
        launcher = EmbeddedLauncher(settings)
        await launcher.start()
        config = {"ops": {"create_snapshot": {"config": {"aggregate_id": "migration-123", "result_id": "r"}}}}
        run_id = await launcher.submit("snapshot", config, {})
        assert await launcher.wait(run_id, 60) is True
        server.kill()
        await asyncio.to_thread(server.start)
        instance = open_instance(prepare_dagster_home(settings))
        run = instance.get_run_by_id(run_id)
        close_instance(instance)
        assert run is not None
        assert run.status is DagsterRunStatus.SUCCESS
        await launcher.stop()
