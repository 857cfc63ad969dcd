"""`kill -9` of an Event Service in the middle of an act, over real Dagster runs: the repeat ends it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx2
import pytest
from dagster import RunsFilter

from api.lanes import close_instance, open_instance
from api.launcher import REQUEST
from eventsourcing import EventStore
from eventsourcing.storage.embedded import EmbeddedPostgres
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.testing import a_migration
from resources.dagster_home import prepare_dagster_home
from tests.api.service_process import ServiceProcess
from tests.integration.launching import launcher_settings

PATH = "/read-models/user-migrations/rebuild"


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("lives", "ran"), [(4, 0), (6, 1)], ids=["before its run", "after its run was made"])
async def test_a_repeat_after_a_kill_finds_the_run(
    postgres_server: EmbeddedPostgres, tmp_path: Path, lives: int, ran: int
) -> None:
    settings = launcher_settings(postgres_server, tmp_path)
    assert settings.database_url is not None
    async with EventStore(storage=PostgresStorage(settings.database_url, pool_size=1)) as store:
        await store.append_events(a_migration())
    assert settings.dagster_database_url is not None
    places = {"ESM_DAGSTER_DATABASE_URL": settings.dagster_database_url, "ESM_DATA_DIR": str(tmp_path)}
    service = ServiceProcess(settings.database_url, settings=places, module="tests.api.mortal")
    instance = open_instance(await asyncio.to_thread(prepare_dagster_home, settings))
    key = {"Idempotency-Key": "once"}
    try:
        service.settings["LIVES"] = str(lives)
        await asyncio.to_thread(service.start)
        async with httpx2.AsyncClient(base_url=service.url, timeout=90) as client:
            with pytest.raises(httpx2.HTTPError):
                await client.post(PATH, headers=key)
            service.kill()  # it has ended itself: this waits for it
            assert len(instance.get_runs()) == ran
            service.settings["LIVES"] = "1000"
            await asyncio.to_thread(service.start)
            first = await client.post(PATH, headers=key)
            again = await client.post(PATH, headers=key)
        assert (first.status_code, first.content) == (202, again.content), first.text
        (run,) = instance.get_runs()
        assert first.json()["dagster_run_id"] == run.run_id
        assert instance.get_runs(RunsFilter(tags={REQUEST: run.tags[REQUEST]})) == [run]
    finally:
        service.stop()
        close_instance(instance)
