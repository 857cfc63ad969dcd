"""The definitions of the system and a job that does nothing: what any run costs."""

from __future__ import annotations

import dagster as dg

from pipelines.jobs import JOBS, RESOURCES


@dg.op
def nothing() -> None:
    """Return at once."""


@dg.job(executor_def=dg.in_process_executor)
def empty() -> None:
    """One op, no resources."""
    nothing()


defs = dg.Definitions(jobs=[*JOBS, empty], resources=RESOURCES)
