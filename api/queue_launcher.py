"""Launching through Dagster's run queue: for production, where a daemon starts runs beside a code server.

Long jobs are given to the webserver by GraphQL, which queues them: limits on what runs at once hold, and no
service ends a run by ending itself. The short ones, for whose answer a caller waits, stay embedded: the
queue alone takes a second. What became of a run is read where Dagster keeps it.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx2
from dagster import DagsterInstance

from api.embedded_launcher import REPOSITORY, SHORT_JOBS, EmbeddedLauncher
from api.launcher import LaunchError
from api.readiness import require_webserver, webserver_url
from eventsourcing.canonical import decode, encode
from eventsourcing.config import Settings
from resources.dagster_home import LOCATION

_TIMEOUT_S = 30.0
_POLL_S = 0.25

_LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on PipelineNotFoundError { message }
    ... on RunConflict { message }
    ... on UnauthorizedError { message }
    ... on PythonError { message }
  }
}
"""

_TERMINATE = """
mutation Terminate($run: String!) {
  terminateRun(runId: $run, terminatePolicy: SAFE_TERMINATE) { __typename }
}
"""


class QueueLauncher:
    """The launcher beside a Dagster deployment: its webserver must answer at `dagster_url`."""

    def __init__(self, settings: Settings) -> None:
        self._embedded = EmbeddedLauncher(settings)
        self._url = webserver_url(settings)
        self._client = httpx2.AsyncClient(timeout=_TIMEOUT_S)

    async def start(self) -> None:
        """See Launcher. The webserver need not be up yet."""
        await self._embedded.start()

    async def stop(self) -> None:
        """See Launcher. What is queued or runs beside a code server goes on."""
        await self._embedded.stop()
        await self._client.aclose()

    async def submit(self, job_name: str, run_config: dict[str, Any], tags: dict[str, str]) -> str:
        """See Launcher. Raises LaunchError also while the webserver does not answer; then a run may have been
        queued all the same, so what it works on must allow a second one."""
        if job_name in SHORT_JOBS:
            return await self._embedded.submit(job_name, run_config, tags)
        selector = {
            "repositoryLocationName": LOCATION,
            "repositoryName": REPOSITORY,
            "jobName": job_name,
        }
        named = [{"key": key, "value": value} for key, value in ({**tags, "esm/launcher": "queue"}).items()]
        params = {
            "selector": selector,
            "runConfigData": decode(encode(run_config)),
            "executionMetadata": {"tags": named},
        }
        answer = (await self._asked(_LAUNCH, {"params": params}))["launchRun"]
        if answer["__typename"] != "LaunchRunSuccess":
            said = answer.get("message") or "; ".join(e["message"] for e in answer.get("errors", []))
            raise LaunchError(" ".join((said or answer["__typename"]).split()))
        return str(answer["run"]["runId"])

    async def find(self, request: str) -> str | None:
        """See Launcher."""
        return await self._embedded.find(request)

    async def wait(self, run_id: str, timeout_s: float) -> bool | None:
        """See Launcher."""
        deadline = time.monotonic() + timeout_s
        while True:
            left = deadline - time.monotonic()
            ended = await self._embedded.wait(run_id, max(0.0, left))
            if ended is not None or left <= 0:
                return ended
            await asyncio.sleep(min(_POLL_S, left))

    async def cancel(self, run_id: str) -> None:
        """See Launcher. One that is queued never begins; one that runs is interrupted where it runs."""
        if self._embedded.has(run_id):
            await self._embedded.cancel(run_id)
        else:
            await self._asked(_TERMINATE, {"run": run_id})

    async def check(self) -> None:
        """See Launcher. The webserver must answer and have our jobs, too."""
        await self._embedded.check()
        await require_webserver(self._client, self._url)

    @property
    def instance(self) -> DagsterInstance:
        """Dagster's instance. Raises LaunchError while the launcher is not started."""
        return self._embedded.instance

    async def _asked(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """What the webserver answers. Raises LaunchError when it does not."""
        try:
            response = await self._client.post(
                f"{self._url}/graphql", json={"query": query, "variables": variables}
            )
            response.raise_for_status()
            answer: dict[str, Any] = response.json()
        except (httpx2.HTTPError, ValueError) as error:
            raise LaunchError(
                f"Dagster's webserver does not answer at {self._url}: {type(error).__name__}"
            ) from error
        if not answer.get("data"):
            first = (answer.get("errors") or [{"message": "no data"}])[0]
            raise LaunchError(" ".join(str(first["message"]).split()))
        data: dict[str, Any] = answer["data"]
        return data
