"""Streams that break a process model, told as they do: by sensors behind the store's horizon and its clock.

The cursor of the first is the position up to which every violation has its run; a fresh home starts at the
horizon. What is overdue is no event: a worker's clock notes it, and the second's cursor is the last note.
"""

from __future__ import annotations

import asyncio
from typing import Any

import dagster as dg

from eventsourcing.bootstrap import open_system
from eventsourcing.config import Settings
from eventsourcing.process_checks import Watcher
from eventsourcing.process_clock import OVERDUE
from eventsourcing.process_machine import Violation
from eventsourcing.process_models import process_models
from pipelines.config import ProcessesConfig
from pipelines.jobs import check_processes

BATCH = 20
"""About how many violations one tick tells; the next tick goes on behind them."""

WINDOW = 20_000
"""How many positions one tick looks at."""


@dg.sensor(job=check_processes, minimum_interval_seconds=10, default_status=dg.DefaultSensorStatus.RUNNING)
def broken_processes(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Name the first event of each stream that broke a process model: its run fails, and says what it was."""
    violations, position = asyncio.run(_broken(int(context.cursor) if context.cursor is not None else None))
    for violation in violations:
        context.log.error(str(violation))
    note = None if violations else f"every process keeps to its model up to position {position}"
    return dg.SensorResult(
        run_requests=[_naming(violation) for violation in violations], skip_reason=note, cursor=str(position)
    )


@dg.sensor(job=check_processes, minimum_interval_seconds=10, default_status=dg.DefaultSensorStatus.RUNNING)
def overdue_processes(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Name each stream that did not go on in time: its run fails, and says what is missing."""
    violations, cursor = asyncio.run(_overdue(context.cursor))
    for violation in violations:
        context.log.error("%r is overdue in %r", violation["subject"], violation["model"])
    note = None if violations else "nothing is overdue that was not told"
    requests = [_missing(violation) for violation in violations]
    return dg.SensorResult(run_requests=requests, skip_reason=note, cursor=cursor)


async def _overdue(after: str | None) -> tuple[list[dict[str, Any]], str]:
    """The next notes of the clock, and the new cursor; a fresh home starts behind the last one."""
    async with open_system(Settings.load()) as system:
        await system.store.initialize()
        async with system.store.storage.transaction() as transaction:
            if after is None:
                last = await transaction.scan(OVERDUE, limit=1, backwards=True)
                return [], last[0][0] if last else ""
            rows = await transaction.scan(OVERDUE, after=after, limit=BATCH)
    return [row for _, row in rows], rows[-1][0] if rows else after


async def _broken(after: int | None) -> tuple[list[Violation], int]:
    """The next violations of the models that are watched, and the new position."""
    async with open_system(Settings.load()) as system:
        horizon = await system.store.horizon()
        if after is None:
            return [], horizon
        to = min(max(horizon, after), after + WINDOW)
        found: list[Violation] = []
        for model in (model for model in process_models() if model.live):
            with Watcher(system.store, model) as watcher:
                found += [each async for each in watcher.violations(after=after, to=to)]
    found.sort(key=lambda violation: violation.position)
    if len(found) > BATCH:
        to = found[BATCH - 1].position
        found = [violation for violation in found if violation.position <= to]
    return found, to


def _naming(violation: Violation) -> dg.RunRequest:
    key = f"{violation.model}-{violation.position}"
    return _request(key, violation.model, violation.subject, violation.position)


def _missing(violation: dict[str, Any]) -> dg.RunRequest:
    model, position = violation["model"], violation["position"]
    return _request(f"{model}-{position}-overdue", model, violation["subject"], position)


def _request(run_key: str, model: str, subject: str, position: int) -> dg.RunRequest:
    config = ProcessesConfig(model=model, aggregate_id=subject)
    tags = {
        "source": "sensor",
        "process_model": model,
        "aggregate_id": subject,
        "position": str(position),
    }
    return dg.RunRequest(
        run_key=run_key,
        run_config=dg.RunConfig(ops={"keep_to_process": config}),
        tags=tags,
    )
