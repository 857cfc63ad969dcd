"""Start Dagster jobs through the launcher, and read what they left in our own rows."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from api.launcher import REQUEST, Launcher
from api.problems import CONFLICT, INTERNAL, NOT_FOUND, UNAVAILABLE, ProblemError, invalid_field
from eventsourcing import EventStore, NotFoundError, StateForbidsError
from eventsourcing.plugins import replay_handlers
from eventsourcing.replays import UNFINISHED, ReplayJournal, ReplayRequest
from eventsourcing.storage.base import StateTable

log = logging.getLogger("esm.api.jobs")

RESULTS = StateTable("job-results")
"""Key: the result's id. Value: {result} or {error: {kind, message}}."""

ANSWER_S = 60.0
"""How long a caller waits for the result of a short job."""

_NEVER_RUN = timedelta(minutes=5)
"""After so long without a run a replay will not get one: its service died between the two."""

OBEY_S = 3.0
"""How long a replay may take to stop of itself before its run is ended."""


SNAPSHOT, VALIDATION = ("snapshot", "create_snapshot"), ("validate_sequence", "validate_sequence")
"""The short jobs, each with the op that answers."""


async def answer(
    store: EventStore, launcher: Launcher, question: tuple[str, str], config: dict[str, Any], token: UUID
) -> Any:
    """Run a short job and return its result, which is kept under the token.

    Raises a 404 problem when it found nothing to work on, 503 when it is not done in time or did not
    start, 500 when it failed.
    """
    (job, op), result_id = question, token.hex
    if "result" in (row := await _result(store, result_id)):
        return row["result"]  # asked for again, after the server died that was asked first
    given = {"result_id": result_id, **{name: value for name, value in config.items() if value is not None}}
    run_id = await submit(launcher, job, {"ops": {op: {"config": given}}}, {})
    ended = await launcher.wait(run_id, ANSWER_S)
    if "result" in (row := await _result(store, result_id)):
        return row["result"]
    members = {"dagster_run_id": run_id}
    if row.get("error", {}).get("kind", "").replace("_", "-") == "not-found":
        raise ProblemError(NOT_FOUND, "This aggregate has no events.", members=members)
    if ended is None:
        raise ProblemError(UNAVAILABLE, "The job is not done yet.", members=members)
    if await _is_broken(launcher):
        raise ProblemError(UNAVAILABLE, "Jobs cannot be executed here.", members=members)
    raise ProblemError(INTERNAL, "The job failed; its run says why.", members=members)


async def _result(store: EventStore, result_id: str) -> dict[str, Any]:
    await store.initialize()
    async with store.storage.transaction() as transaction:
        return await transaction.get(RESULTS, result_id) or {}


async def _is_broken(launcher: Launcher) -> bool:
    try:
        await launcher.check()
    except Exception:
        log.exception("a job failed, and no other could be executed")
        return True
    return False


async def start_replay(store: EventStore, launcher: Launcher, request: ReplayRequest, token: UUID) -> str:
    """Write the row of a replay and start its job; return its id, the same one for the same token.

    Raises a 422 problem for an unknown handler, 503 when the job does not start; the row then says so.
    """
    try:
        replay_handlers(request.handlers)
    except NotFoundError:
        raise invalid_field("handlers", "names a handler that is not registered") from None
    await store.initialize()
    journal = ReplayJournal(store.storage)
    replay_id = await journal.create(request, token)
    row = await journal.get(replay_id) or {}
    if row.get("dagster_run_id") is None:
        if row.get("status") == "failed":
            await journal.resume(replay_id)
        await _run_pending(journal, launcher, replay_id, token)
    return replay_id  # asked for again, after the server died that was asked first, it runs already


async def resume_replay(store: EventStore, launcher: Launcher, replay_id: str, token: UUID) -> None:
    """Start the job that goes on with a replay which ended early; the same token starts it once.

    Raises a 404 problem, 409 unless it is interrupted, failed or cancelled, 503 when the job does not start.
    """
    journal = ReplayJournal(store.storage)
    row = await journal.get(replay_id)
    if row is None:
        raise ProblemError(NOT_FOUND, "Replay not found")
    waits = row["status"] == "pending" and row.get("resumed_by") == token.hex
    if not waits and await started(launcher, token) is None:
        try:
            await journal.resume(replay_id, token)
        except StateForbidsError as error:
            raise ProblemError(CONFLICT, f"The replay cannot be resumed: it is {error.status}.") from None
    await _run_pending(journal, launcher, replay_id, token)


async def _run_pending(journal: ReplayJournal, launcher: Launcher, replay_id: str, token: UUID) -> None:
    """Start the job of a pending replay, unless the token has; when it does not start, the row says so."""
    config = {"ops": {"replay_events": {"config": {"replay_id": replay_id}}}}
    run_id = await started(launcher, token)
    if run_id is None:
        try:
            run_id = await submit(launcher, "replay", config, {"replay_id": replay_id}, token)
        except ProblemError as problem:
            why = {"failure": problem.detail, "end_time": datetime.now(UTC)}
            await journal.update(replay_id, status="failed", **why)
            raise
    if (await journal.get(replay_id) or {}).get("dagster_run_id") is None:
        await journal.update(replay_id, dagster_run_id=run_id)


async def settle_replays(store: EventStore, launcher: Launcher) -> None:
    """Say of replays that wait for a run which is over, or was never made, that they were interrupted.

    For a service that starts: the one that asked for them may have died. Looks at the newest thousand.
    """
    await store.initialize()
    journal = ReplayJournal(store.storage)
    for row in await journal.page(limit=1000):
        age = datetime.now(UTC) - datetime.fromisoformat(row["start_time"])
        if row["status"] != "pending":
            continue
        run_id = row.get("dagster_run_id")
        over = age > _NEVER_RUN if run_id is None else await launcher.wait(run_id, 0) is not None
        if over:
            why = "its run ended before it began"
            await journal.update(
                row["replay_id"], status="interrupted", failure=why, end_time=datetime.now(UTC)
            )


async def cancel_replay(store: EventStore, launcher: Launcher, replay_id: str) -> None:
    """Return once a replay has stopped: of itself, or because its run was ended.

    Raises a 409 problem when it is not running, or has ended before it could be stopped.
    """
    journal = ReplayJournal(store.storage)
    if not await journal.request_cancel(replay_id):
        raise ProblemError(CONFLICT, "The replay is not running.")
    row = await finished_replay(journal, replay_id, wait_s=OBEY_S) or {}
    if row.get("status") in ("completed", "failed"):
        raise ProblemError(CONFLICT, "The replay ended before it could be stopped.")
    run_id = row.get("dagster_run_id")
    if run_id is None:
        return
    await launcher.cancel(run_id)
    if row["status"] in UNFINISHED:
        await launcher.wait(run_id, OBEY_S)
        await journal.update(replay_id, status="cancelled", end_time=datetime.now(UTC))


async def finished_replay(journal: ReplayJournal, replay_id: str, *, wait_s: float) -> dict[str, Any] | None:
    """The row of a replay as soon as it has ended, or as it is after that time; None for no such row."""
    deadline, pause = time.monotonic() + wait_s, 0.05
    while True:
        row = await journal.get(replay_id)
        left = deadline - time.monotonic()
        if row is None or row["status"] not in UNFINISHED or left <= 0:
            return row
        await asyncio.sleep(min(pause, left))
        pause = min(pause * 1.5, 0.5)


async def started(launcher: Launcher, token: UUID) -> str | None:
    """The run of the job that a request has started, if it has. Raises a 503 problem."""
    try:
        return await launcher.find(token.hex)
    except Exception as error:
        raise ProblemError(UNAVAILABLE, "Jobs cannot be started here.") from error


async def submit(
    launcher: Launcher, job: str, config: dict[str, Any], tags: dict[str, str], token: UUID | None = None
) -> str:
    """Start a job; its run's id. With a token, `started` finds it. Raises a 503 problem when it does not
    start."""
    try:
        return await launcher.submit(job, config, tags if token is None else {**tags, REQUEST: token.hex})
    except Exception as error:
        log.exception("job %s did not start", job)
        raise ProblemError(UNAVAILABLE, "The job could not be started.") from error
