"""Launching Dagster runs on this machine: the launcher of a service without a Dagster deployment.

A run is created in Dagster's instance and executed in a lane: a warm worker process that executes one
run at a time. Never in a thread of a server, where two runs block each other for ever.

- A run exists, with its history, from the moment `submit` returns; a configuration that the job does
  not take is refused before.
- Short jobs have a lane of their own, so that no migration makes a snapshot wait. The other lanes
  start with their first run.
- A lane that is killed fails its run at once and is replaced. When the server itself is killed, its
  lanes end with it, and the next server on the host fails the runs that they left.
- `cancel` asks the run to end, its loops obey within half a second and leave their rows in order, and
  what does not is interrupted. What has not begun never begins.

Dagster's private modules are used here and in `lanes.py` only; the version is pinned to one minor.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import psutil
from dagster import (
    DagsterError,
    DagsterInstance,
    DagsterInvalidConfigError,
    DagsterRun,
    DagsterRunStatus,
    RunsFilter,
)
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin

from api.lanes import DEFINITIONS, Lane, close_instance, open_instance, reconstructable_job
from api.launcher import REQUEST, LaunchError
from eventsourcing.canonical import decode, encode
from eventsourcing.config import Settings
from resources.dagster_home import LOCATION, prepare_dagster_home

SHORT_JOBS = frozenset({"snapshot", "validate_sequence"})
LONG_LANES = 2
"""How many migrations and replays one server runs at once."""

_GRACE_S = 2.0
"""How long a cancelled run may take to end in good order, its own rows included, before it is interrupted."""

_WARM_S = 60.0
"""How long a new process may take to import the jobs."""

_NO_RUN = "00000000-0000-0000-0000-000000000000"

_STOP_S = 5.0
"""How long a stopping server waits for its runs to end in good order."""

log = logging.getLogger("esm.api.launcher")

REPOSITORY = "__repository__"
_BEGINNING = (DagsterRunStatus.QUEUED, DagsterRunStatus.NOT_STARTED)
_UNFINISHED = (*_BEGINNING, DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING)
_LAUNCHER, _HOST, _PROCESS = "esm/launcher", "esm/host", "esm/process"


class EmbeddedLauncher:
    """The launcher of one machine: no webserver, no daemon and no code server are needed."""

    def __init__(self, settings: Settings, *, definitions: str = DEFINITIONS) -> None:
        self._settings, self._definitions = settings, definitions
        self._instance: DagsterInstance | None = None
        self._short: asyncio.Queue[str] = asyncio.Queue()
        self._long: asyncio.Queue[str] = asyncio.Queue()
        self.lanes: list[Lane] = []
        self._workers: list[asyncio.Task[None]] = []
        self._ended: dict[str, asyncio.Future[bool]] = {}
        self._insisting: set[asyncio.Task[None]] = set()
        self._unsettled: dict[str, str] = {}
        self._fault: str | None = None

    async def start(self) -> None:
        """See Launcher. Runs that a dead server of this host left unfinished are failed first."""
        environment = await asyncio.to_thread(prepare_dagster_home, self._settings)
        self._instance = await asyncio.to_thread(open_instance, environment)
        await asyncio.to_thread(self._reconcile)
        short = Lane(environment, self._short, keeps_open=True, definitions=self._definitions)
        long = (Lane(environment, self._long, definitions=self._definitions) for _ in range(LONG_LANES))
        self.lanes = [short, *long]
        await asyncio.gather(
            short.warm(), asyncio.to_thread(reconstructable_job, "snapshot", self._definitions)
        )
        self._workers = [asyncio.create_task(self._serve(lane)) for lane in self.lanes]

    async def stop(self) -> None:
        """See Launcher."""
        unfinished = dict(self._ended)
        for run_id in unfinished:
            await self.cancel(run_id)
        if unfinished:
            await asyncio.wait(unfinished.values(), timeout=_STOP_S)
        for worker in self._workers:
            worker.cancel()
        for lane in self.lanes:
            lane.end()
        await asyncio.gather(*self._workers, return_exceptions=True)
        for run_id in list(self._ended):
            await self._end(run_id, "the server stopped")
        self._workers, self.lanes = [], []
        if self._instance is not None:
            await asyncio.to_thread(close_instance, self._instance)
            self._instance = None

    async def submit(self, job_name: str, run_config: dict[str, Any], tags: dict[str, str]) -> str:
        """See Launcher."""
        run_id = await asyncio.to_thread(self._create, job_name, run_config, tags)
        self._ended[run_id] = asyncio.get_running_loop().create_future()
        (self._short if job_name in SHORT_JOBS else self._long).put_nowait(run_id)
        return run_id

    async def find(self, request: str) -> str | None:
        """See Launcher."""
        made_for = RunsFilter(tags={REQUEST: request})
        runs = await asyncio.to_thread(self.instance.get_runs, made_for, limit=1)
        return runs[0].run_id if runs else None

    async def wait(self, run_id: str, timeout_s: float) -> bool | None:
        """See Launcher."""
        ended = self._ended.get(run_id)
        if ended is None:
            run = await asyncio.to_thread(self.instance.get_run_by_id, run_id)
            return None if run is None or not run.is_finished else run.is_success
        await asyncio.wait({ended}, timeout=timeout_s)
        return ended.result() if ended.done() else None

    async def cancel(self, run_id: str) -> None:
        """See Launcher. A run of another launcher is told; its loops obey."""
        lane = next((lane for lane in self.lanes if lane.running == run_id), None)
        if lane is None and run_id in self._ended:
            await self._end(run_id, "cancelled before it began", canceled=True)
            return
        await asyncio.to_thread(self._tell_to_end, run_id)
        if lane is not None:
            insisting = asyncio.create_task(self._insist(lane, run_id))
            self._insisting.add(insisting)
            insisting.add_done_callback(self._insisting.discard)

    async def check(self) -> None:
        """See Launcher. Once Dagster's storage is back, runs that could not be settled are, and idle lanes
        get new processes, for the connections of the old ones broke; so do lanes that were found broken."""
        try:
            await asyncio.to_thread(self.instance.get_runs_count, RunsFilter(run_ids=[_NO_RUN]))
        except Exception:
            self._fault = "Dagster's storage was away"
            raise
        for run_id, reason in list(self._unsettled.items()):
            await asyncio.to_thread(self._settle, run_id, reason)
            del self._unsettled[run_id]
        if self._fault is not None:
            await self._renew_lanes()
            self._fault = None

    async def _renew_lanes(self) -> None:
        """Give idle lanes new processes, and see that one of them can begin."""
        for lane in self.lanes:
            if lane.running is None:
                lane.end()
                lane.renew()
        async with asyncio.timeout(_WARM_S):
            await self.lanes[0].warm()

    async def _insist(self, lane: Lane, run_id: str) -> None:
        """Interrupt a run that does not end by itself."""
        await self.wait(run_id, _GRACE_S)
        if lane.running == run_id and lane.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(lane.pid, signal.SIGINT)

    def has(self, run_id: str) -> bool:
        """Whether the run is one of this server's, and not over."""
        return run_id in self._ended

    def tags(self) -> dict[str, str]:
        """What every run of this server carries, so that it is known whose it was."""
        return {_LAUNCHER: "embedded", _HOST: socket.gethostname(), _PROCESS: _this_process()}

    async def _serve(self, lane: Lane) -> None:
        """Execute the runs that wait for a lane, one after the other, for ever."""
        while True:
            run_id = await lane.waiting.get()
            if run_id not in self._ended:
                continue  # cancelled while it waited
            lane.running = run_id
            reason = await self._executed(lane, run_id)
            lane.running = None
            await self._end(run_id, reason)

    async def _executed(self, lane: Lane, run_id: str) -> str:
        """Execute a run; return what to say of it in case its process left it unfinished."""
        for _ in range(2):
            try:
                await lane.execute(run_id)
            except BrokenProcessPool:
                lane.renew()
                run = await asyncio.to_thread(self.instance.get_run_by_id, run_id)
                if run is None or run.status not in _BEGINNING:
                    return "its process was killed"
                # The process had died idle: the run has not begun, and a new process takes it.
            except Exception as error:  # noqa: BLE001 - a supervising loop: the run records it, others go on
                self._fault = f"a run could not be executed: {type(error).__name__}"
                return f"it could not be executed: {type(error).__name__}"
            else:
                self._fault = None
                return "it ended without a result"
        self._fault = "the processes of a run ended before it began"
        return "its processes were killed"

    async def _end(self, run_id: str, reason: str, *, canceled: bool = False) -> None:
        """Make sure that a run is finished in the instance, and tell those who wait for it."""
        ended = self._ended.pop(run_id, None)
        try:
            success = await asyncio.to_thread(self._settle, run_id, reason, canceled=canceled)
        except Exception:
            log.exception("run %s is over, and Dagster could not be told", run_id)
            self._unsettled[run_id], success = reason, False
        if ended is not None and not ended.done():
            ended.set_result(success)

    @property
    def instance(self) -> DagsterInstance:
        """Dagster's instance. Raises LaunchError while the launcher is not started."""
        if self._instance is None:
            raise LaunchError("the launcher is not started")
        return self._instance

    def _create(self, job_name: str, run_config: dict[str, Any], tags: dict[str, str]) -> str:
        origin = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(LOCATION), REPOSITORY)
        try:
            job = reconstructable_job(job_name, self._definitions)
            run = self.instance.create_run_for_job(
                job_def=job.get_definition(),
                run_config=decode(encode(run_config)),  # plain values: Dagster stores no enums of ours
                tags={**tags, **self.tags()},
                remote_job_origin=origin.get_job_origin(job_name),
                job_code_origin=job.get_python_origin(),
            )
        except DagsterInvalidConfigError as error:
            raise LaunchError(_one_line(error.errors[0].message)) from error
        except DagsterError as error:
            raise LaunchError(_one_line(str(error))) from error
        return run.run_id

    def _tell_to_end(self, run_id: str) -> None:
        run = self.instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return
        if run.status in _BEGINNING:
            self.instance.report_run_canceled(run)
        else:
            self.instance.report_run_canceling(run)

    def _settle(self, run_id: str, reason: str, *, canceled: bool = False) -> bool:
        run = self.instance.get_run_by_id(run_id)
        if run is not None and not run.is_finished:
            if canceled or run.status is DagsterRunStatus.CANCELING:
                self.instance.report_run_canceled(run, f"The run was cancelled: {reason}.")
            else:
                self.instance.report_run_failed(run, f"The run failed: {reason}.")
        return run is not None and run.is_success

    def _reconcile(self) -> None:
        """Fail the runs of servers of this host that are gone; those of other live servers go on."""
        mine = RunsFilter(
            tags={_LAUNCHER: "embedded", _HOST: socket.gethostname()}, statuses=list(_UNFINISHED)
        )
        for run in self.instance.get_runs(mine):
            if not _is_alive(run):
                self._settle(run.run_id, "its server is gone")


def _this_process() -> str:
    process = psutil.Process()
    return f"{process.pid}@{process.create_time()}"


def _is_alive(run: DagsterRun) -> bool:
    pid, _, created = run.tags[_PROCESS].partition("@")
    try:
        return str(psutil.Process(int(pid)).create_time()) == created
    except psutil.NoSuchProcess:
        return False


def _one_line(message: str) -> str:
    return " ".join(message.split())
