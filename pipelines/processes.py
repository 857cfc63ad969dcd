"""Streams that break a process model, told as they do: a sensor behind the store's horizon.

Its cursor is the position up to which every violation has its run; a fresh home starts at the horizon. What
is overdue is no event, so the nightly check finds it.
"""

from __future__ import annotations

import asyncio

import dagster as dg

from eventsourcing.bootstrap import open_system
from eventsourcing.config import Settings
from eventsourcing.process_checks import Watcher
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
    config = ProcessesConfig(model=violation.model, aggregate_id=violation.subject)
    tags = {
        "source": "sensor",
        "process_model": violation.model,
        "aggregate_id": violation.subject,
        "position": str(violation.position),
    }
    return dg.RunRequest(
        run_key=f"{violation.model}-{violation.position}",
        run_config=dg.RunConfig(ops={"keep_to_process": config}),
        tags=tags,
    )
