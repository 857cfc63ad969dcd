"""Lanes: warm worker processes that execute Dagster runs, one at a time each.

A lane's process starts with its first task and ends with its parent, however that ends. Killing it
breaks this lane only. Between runs it ignores SIGINT; during a run Dagster takes it as the wish to end.

Beside `launcher.py` the only place that uses Dagster's private modules; the version is pinned.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository
from dagster._core.execution.api import execute_run
from dagster._core.instance.ref import InstanceRef
from sqlalchemy import func, select
from sqlalchemy.engine import make_url

from eventsourcing.config import Settings
from eventsourcing.logs import configure, run_of
from resources.dagster_home import apply_environment
from resources.kept_system import give_up, keep_open, open_ahead

DEFINITIONS = "pipelines.definitions"
"""The module whose `defs` holds the jobs."""


@dataclass
class Lane:
    """One worker process and the runs that wait for it."""

    environment: dict[str, str]
    waiting: asyncio.Queue[str]
    keeps_open: bool = False
    """Whether its runs share one open system: worth it for short ones."""
    definitions: str = DEFINITIONS
    running: str | None = None
    pid: int | None = None
    pool: ProcessPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Take a new process, which starts with its first task."""
        self.pid = None
        self.pool = ProcessPoolExecutor(
            1,
            mp_context=get_context("spawn"),
            initializer=_enter_lane,
            initargs=(self.environment, self.keeps_open),
        )

    async def warm(self) -> None:
        """Have the process import everything that a run needs."""
        self.pid = await asyncio.get_running_loop().run_in_executor(self.pool, _warm, self.definitions)

    async def execute(self, run_id: str) -> None:
        """Execute a run; the instance knows how it ended. Raises BrokenProcessPool when the process dies."""
        if self.pid is None:
            await self.warm()
        await asyncio.get_running_loop().run_in_executor(self.pool, _execute, run_id, self.definitions)

    def end(self) -> None:
        """End the process, whatever it does."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def open_instance(environment: dict[str, str], *, keeps_later: bool = False) -> DagsterInstance:
    """The instance of a prepared home, with pooled connections: three times faster a run.

    With `keeps_later` no commit waits for the server's disk; `keep_all` does once for all before it.
    """
    url = make_url(environment["ESM_DAGSTER_DATABASE_URL"])
    if keeps_later:
        options = f"{url.query.get('options', '')} -c synchronous_commit=off".strip()
        url = url.update_query_dict({"options": options})
    storage = {"postgres": {"postgres_url": url.render_as_string(hide_password=False)}}
    reference = InstanceRef.from_dir(environment["DAGSTER_HOME"], overrides={"storage": storage})
    instance = DagsterInstance.from_ref(reference)
    instance.optimize_for_webserver(statement_timeout=15_000, pool_recycle=3600, max_overflow=20)
    for asked in (instance.run_storage, instance.event_log_storage):
        for name in _LOOKS_AT_SCHEMA:
            if hasattr(asked, name):
                setattr(asked, name, _remembering(getattr(asked, name)))
    return instance


_LOOKS_AT_SCHEMA = (
    "has_run_stats_index_cols",
    "has_bulk_actions_selector_cols",
    "has_backfill_id_column",
    "has_bulk_action_job_name_column",
    "has_backfill_tags_table",
    "has_built_index",
    "has_asset_key_index_cols",
    "has_asset_key_col",
    "has_secondary_index",
    "has_table",
)
"""What Dagster asks its database's catalogue seven times a run, which is as much work as the run."""


def _remembering(look: Callable[..., bool]) -> Callable[..., bool]:
    """Look until it is there: columns and tables of a running Dagster come, and do not go."""
    found: set[tuple[Any, ...]] = set()

    def remembered(*arguments: Any) -> bool:
        if arguments not in found and look(*arguments):
            found.add(arguments)
        return arguments in found

    return remembered


def keep_all(instance: DagsterInstance) -> None:
    """Return once all that was committed is on the server's disk: a commit that waits flushes what is
    before it, and takes something to write."""
    wait = func.set_config("synchronous_commit", "on", True)
    with instance.run_storage._engine.begin() as connection:  # type: ignore[attr-defined] # Dagster's
        connection.execute(select(wait, func.pg_logical_emit_message(True, "esm", "a run ended")))


def close_instance(instance: DagsterInstance) -> None:
    """Dispose of an instance and of the pools behind it, which Dagster leaves connected."""
    instance.dispose()
    for storage in (instance.run_storage, instance.event_log_storage, instance.schedule_storage):
        engine = getattr(storage, "_engine", None)
        if engine is not None:
            engine.dispose()


@cache
def reconstructable_job(name: str, definitions: str = DEFINITIONS) -> ReconstructableJob:
    """The job of a name, as another process can load it. Raises DagsterError for an unknown name."""
    root = str(Path(__file__).resolve().parents[1])
    repository = ReconstructableRepository.for_module(definitions, "defs", working_directory=root)
    job = repository.get_reconstructable_job(name)
    job.get_definition()
    return job


# What follows runs in the lane's process.

_lane_environment: dict[str, str] = {}


def _enter_lane(environment: dict[str, str], keeps_open: bool) -> None:
    os.setsid()  # Ctrl-C at the server's terminal is for the server, which ends its lanes
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a late cancel; Dagster handles it while a run executes
    apply_environment(environment)
    settings = Settings.load()
    server = os.fdopen(os.dup(2), "w", encoding="utf-8")
    configure(settings.log_level, settings.log_format, stream=server, service="lane")
    _write_to(settings.data_dir / "logs")
    _lane_environment.update(environment)
    if keeps_open:
        keep_open()
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _write_to(folder: Path) -> None:
    """What Dagster prints of its runs goes into a file; the terminal is the server's."""
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(folder / "lanes.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


@cache
def _lane_instance() -> DagsterInstance:
    """A run commits some thirty times, and who waits for it would wait for each. A server that crashes
    meanwhile fails the run anyway; what a run leaves is kept before anybody is told that it ended."""
    return open_instance(_lane_environment, keeps_later=True)


def _warm(definitions: str) -> int:
    reconstructable_job("snapshot", definitions)
    _lane_instance()
    open_ahead()
    return os.getpid()


def _execute(run_id: str, definitions: str) -> bool:
    run = _lane_instance().get_run_by_id(run_id)
    if run is None or run.status is not DagsterRunStatus.NOT_STARTED:
        return False
    success = False
    try:
        with run_of(run_id):
            job = reconstructable_job(run.job_name, definitions)
            success = execute_run(job, run, _lane_instance()).success
        keep_all(_lane_instance())
    finally:
        if not success:
            give_up()
    return success
