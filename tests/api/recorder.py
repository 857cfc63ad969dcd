"""A launcher that takes jobs and never runs them."""

from __future__ import annotations

from typing import Any

from api.launcher import REQUEST


class Recorder:
    """The launcher port without Dagster: jobs are taken and never run."""

    def __init__(self) -> None:
        self.submitted: list[tuple[str, dict[str, Any]]] = []
        self.tags: list[dict[str, str]] = []
        self.cancelled: list[str] = []
        self.refuses = False

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def submit(self, job_name: str, run_config: dict[str, Any], tags: dict[str, str]) -> str:
        if self.refuses:
            raise RuntimeError("no lane")
        self.submitted.append((job_name, run_config))
        self.tags.append(tags)
        return f"run-{len(self.submitted)}"

    async def find(self, request: str) -> str | None:
        made_for = [tags.get(REQUEST) for tags in self.tags]
        return f"run-{made_for.index(request) + 1}" if request in made_for else None

    async def wait(self, run_id: str, timeout_s: float) -> bool | None:  # noqa: ARG002 - the port
        return None

    async def cancel(self, run_id: str) -> None:
        self.cancelled.append(run_id)

    async def check(self) -> None: ...
