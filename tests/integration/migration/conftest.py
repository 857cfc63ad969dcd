"""A legacy panel with every planted defect, and migrations of it into real PostgreSQL databases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eventsourcing import EventStore
from eventsourcing.storage.embedded import EmbeddedPostgres
from pipelines.migration import Progress
from pipelines.migration.legacy_panel import create_target_schema, generate_legacy_panel
from tests.integration.migration.lab import USERS, Finished, Lab, Panel, all_events, small_chunks
from tests.integration.migration.tenants import TABLES, NewLab, create_source, create_target, mapping


@pytest.fixture(scope="session")
def panel(tmp_path_factory: pytest.TempPathFactory) -> Panel:
    path = tmp_path_factory.mktemp("legacy") / "legacy.db"
    return Panel(path, generate_legacy_panel(path, users=USERS))


@pytest.fixture
def new_lab(panel: Panel, new_database: Callable[[], str], tmp_path: Path) -> Callable[[], Lab]:
    made: list[Lab] = []

    def create() -> Lab:
        url = new_database()
        create_target_schema(url)
        made.append(Lab(f"sqlite:///{panel.path}", url, tmp_path / f"work-{len(made)}", small_chunks()))
        return made[-1]

    return create


@pytest.fixture
def lab(new_lab: Callable[[], Lab]) -> Lab:
    return new_lab()


@pytest.fixture(scope="session")
def finished(
    panel: Panel, postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    postgres_server.ensure_database("finished")
    url = postgres_server.url("finished")
    create_target_schema(url)
    lab = Lab(f"sqlite:///{panel.path}", url, tmp_path_factory.mktemp("finished") / "work", small_chunks())
    progress: list[Progress] = []

    async def run() -> Finished:
        async with EventStore(use_memory=True) as store:
            metadata = {"dagster_run_id": "run-1", "operator": "ada"}
            migration = lab.migration(store, metadata=metadata, on_progress=progress.append)
            return Finished(lab, await migration.run(), await all_events(store), progress)

    return asyncio.run(run())


@pytest.fixture
def tenants_lab(new_database: Callable[[], str], tmp_path: Path) -> NewLab:
    """A lab from one kind of database into another."""

    def database(kind: str, name: str) -> str:
        if kind == "postgresql":
            return new_database()
        (tmp_path / name).touch()
        return f"sqlite:///{tmp_path / name}"

    def create(source: str, target: str, *, policy: str = "fail", rows: Any = None, there: Any = None) -> Lab:
        from_url, to_url = database(source, "source.db"), database(target, "target.db")
        create_source(from_url, rows)
        create_target(to_url, there)
        return Lab(from_url, to_url, tmp_path / "work", mapping(policy), TABLES)

    return create
