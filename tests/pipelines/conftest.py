"""The process as a Dagster process finds it: a database, a data directory, and events in the store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from eventsourcing.bootstrap import open_system
from eventsourcing.events import BaseEvent, RecordedEvent
from pipelines.definitions import defs

Append = Callable[[Sequence[BaseEvent]], list[RecordedEvent]]
RunJob = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture
def data_dir(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory and an empty event database, named in the environment."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("ESM_DATA_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def append(data_dir: Path) -> Append:
    """Append events to the store of the environment."""

    async def store(events: Sequence[BaseEvent]) -> list[RecordedEvent]:
        async with open_system() as system:
            return await system.store.append_events(events)

    return lambda events: asyncio.run(store(events))


@pytest.fixture
def run_job(data_dir: Path) -> RunJob:
    """Run a job in this process, on an instance that ends with the test."""

    def run(name: str, run_config: Any, *, instance: dg.DagsterInstance | None = None) -> Any:
        job = defs.resolve_job_def(name)
        with contextlib.ExitStack() as stack:
            used = instance or stack.enter_context(dg.DagsterInstance.ephemeral())
            return job.execute_in_process(run_config=run_config, instance=used, raise_on_error=False)

    return run
