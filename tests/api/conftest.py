"""Both services over one real PostgreSQL database, opened once; each test uses ids of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import pytest_asyncio
from fastapi import FastAPI

from api import event_service, replay_service
from api.jobs import RESULTS
from api.launcher import REQUEST
from eventsourcing import (
    BaseEvent,
    DeadLetterQueue,
    EventSourcingError,
    EventStore,
    NotFoundError,
    ParkedSelection,
    RecordedEvent,
    Settings,
)
from eventsourcing.process_checks import check_process
from eventsourcing.process_models import process_model
from eventsourcing.readmodels import read_model
from eventsourcing.rebuilds import rebuild
from eventsourcing.replay import EventReplay, require_events
from eventsourcing.replay_runs import run_replay
from eventsourcing.storage.embedded import EmbeddedPostgres
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.worker import group_handlers


class InlineLauncher:
    """The launcher port without Dagster: each job is a task of this process."""

    def __init__(self, database_url: str) -> None:
        self.store = EventStore(storage=PostgresStorage(database_url, pool_size=2))
        self.runs: dict[str, asyncio.Task[None]] = {}
        self.requests: dict[str, str] = {}
        self.refuses = False

    async def start(self) -> None:
        await self.store.initialize()

    async def stop(self) -> None:
        for run in self.runs.values():
            run.cancel()
        await asyncio.gather(*self.runs.values(), return_exceptions=True)
        await self.store.close()

    async def submit(self, job_name: str, run_config: dict[str, Any], tags: dict[str, str]) -> str:
        if self.refuses:
            raise RuntimeError("no lane")
        run_id = str(uuid4())
        ((op, given),) = run_config["ops"].items()
        self.runs[run_id] = asyncio.create_task(self._run(op, given["config"]), name=job_name)
        if REQUEST in tags:
            self.requests[tags[REQUEST]] = run_id
        return run_id

    async def find(self, request: str) -> str | None:
        return self.requests.get(request)

    async def wait(self, run_id: str, timeout_s: float) -> bool | None:
        if run_id not in self.runs:
            return None
        await asyncio.wait({self.runs[run_id]}, timeout=timeout_s)
        return self.runs[run_id].done() or None

    async def cancel(self, run_id: str) -> None:
        self.runs[run_id].cancel()

    async def check(self) -> None:
        if self.refuses:
            raise RuntimeError("no lane")

    async def _run(self, op: str, config: dict[str, Any]) -> None:
        if op == "replay_events":
            await run_replay(self.store, config["replay_id"])
            return
        if op == "rebuild_read_model":
            await rebuild(self.store.storage, read_model(config["name"]), fresh=config["fresh"])
            return
        if op == "redrive_dead_letters":
            selection = ParkedSelection(config["group"], aggregates=tuple(config["aggregates"]))
            queue, handlers = DeadLetterQueue(self.store), group_handlers(config["group"])
            await queue.redrive(selection, handlers, by=config["by"], why=config["why"], cap=config["cap"])
            return
        replay = EventReplay(self.store)
        value: dict[str, Any]
        try:
            if op == "create_snapshot":
                value = await replay.create_snapshot(config["aggregate_id"], config.get("up_to_version"))
            elif config.get("model") is not None:
                value = await check_process(
                    self.store, process_model(config["model"]), config["aggregate_id"]
                )
            else:
                await require_events(self.store, config["aggregate_id"])
                value = await replay.validate_event_sequence(
                    config["aggregate_id"], config["expected_sequence"]
                )
            row = {"result": value}
        except NotFoundError as error:
            row = {"error": {"kind": "not_found", "message": str(error)}}
        except EventSourcingError as error:
            row = {"error": {"kind": "other", "message": str(error)}}
        async with self.store.storage.transaction() as transaction:
            await transaction.put(RESULTS, config["result_id"], row)


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of an application whose lifespan has begun."""
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        yield client


@pytest.fixture(scope="session")
def service_database(postgres_server: EmbeddedPostgres) -> str:
    """One database for all tests of the services."""
    postgres_server.ensure_database("services")
    return postgres_server.url("services")


@pytest.fixture(scope="session")
def settings(service_database: str) -> Settings:
    """Settings over that database."""
    return Settings(database_url=service_database)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def events(settings: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the Event Service."""
    async with serving(event_service.create_app(settings)) as client:
        yield client


@pytest.fixture(scope="session")
def launcher(service_database: str) -> InlineLauncher:
    """The launcher behind the Replay Service."""
    return InlineLauncher(service_database)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def replays(settings: Settings, launcher: InlineLauncher) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the Replay Service."""
    async with serving(replay_service.create_app(settings, launcher)) as client:
        yield client


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stored(service_database: str) -> AsyncIterator[EventStore]:
    """The store behind both services."""
    async with EventStore(storage=PostgresStorage(service_database, pool_size=2)) as store:
        yield store


@pytest.fixture
def unique() -> str:
    """An id of this test's own."""
    return f"migration-{uuid4().hex[:12]}"


async def append(database: str, events: Sequence[BaseEvent]) -> list[RecordedEvent]:
    """Append to the store of a database, as a process beside the services would."""
    async with EventStore(storage=PostgresStorage(database, pool_size=2)) as store:
        return await store.append_events(events)


def a_body(aggregate_id: str, /, **changes: Any) -> dict[str, Any]:
    """The body of a started event, as JSON."""
    return {
        "event_type": "migration.started",
        "aggregate_id": aggregate_id,
        "aggregate_type": "migration",
        "data": {
            "source_config": {"host": "source.example.com"},
            "target_config": {"host": "target.example.com"},
        },
        **changes,
    }


def assert_problem(response: httpx2.Response, status: int, slug: str | None = None) -> dict[str, Any]:
    """Require a problem of this status and type; return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert {"type", "title", "detail", "instance"} <= problem.keys()
    if slug is not None:
        assert problem["type"] == f"/problems/{slug}"
    return problem


ROOT = Path(__file__).parents[2]

Start = Callable[..., subprocess.Popen[str]]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a module as a process with these settings; it is gone at the end of the test."""
    running: list[subprocess.Popen[str]] = []

    def begin(module: str, **settings: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings}
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()
