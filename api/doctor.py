"""Everything that can be wrong here, looked at from the outside in: machine, database, followers, servers."""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator

import httpx2
import psutil

from eventsourcing.bootstrap import open_system
from eventsourcing.config import Settings
from eventsourcing.diagnosis import Finding, database_findings, kafka_findings, store_findings
from eventsourcing.errors import CursorAheadError, EventSourcingError
from eventsourcing.storage.embedded import EVENT_DATABASE, EmbeddedPostgres

MIN_FREE_BYTES = 1024**3
MIN_FREE_MEMORY = 0.05
DAEMON_SILENT_S = 120.0
TIMEOUT_S = 10.0

_DAGSTER = """{
  workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError {
    __typename ... on PythonError { message } } } } }
  instance { daemonHealth { allDaemonStatuses { daemonType required healthy lastHeartbeatTime } } }
}"""


async def findings(settings: Settings) -> AsyncIterator[Finding]:
    """Every check in turn, as it is done."""
    for finding in (_disk(settings), _memory()):
        yield finding
    embedded = EmbeddedPostgres(settings.data_dir) if settings.database_url is None else None
    if embedded is not None and not embedded.running():
        cure = "esm up starts it with everything; any command of esm starts it for as long as it runs"
        yield Finding("database", "failed", "the embedded PostgreSQL is not running", cure)
    else:
        async for finding in _database(settings, embedded):
            yield finding
    async with httpx2.AsyncClient(timeout=TIMEOUT_S, verify=False) as client:
        for name, port in (
            ("event-service", settings.event_service_port),
            ("replay-service", settings.replay_service_port),
        ):
            yield await _service(client, settings, name, port)
        async for finding in _dagster(client, settings):
            yield finding


async def _database(settings: Settings, embedded: EmbeddedPostgres | None) -> AsyncIterator[Finding]:
    url = settings.database_url
    if embedded is not None:
        embedded.start()  # it runs: this only finds its address
        url = embedded.url(EVENT_DATABASE)
    assert url is not None, "one of the two is the event database"
    failed = False
    async for finding in database_findings(url):
        failed |= finding.status == "failed" and finding.check in ("database", "schema")
        yield finding
    if failed:
        return
    try:
        async with open_system(settings) as system:
            async for finding in store_findings(system):
                yield finding
            if settings.kafka_bootstrap_servers is not None:
                async for finding in kafka_findings(system, settings.bus_config()):
                    yield finding
    except CursorAheadError as error:
        cure = f"esm db rebase {error.cursor}, before anything is appended; docs/guides/backup-and-restore.md"
        yield Finding("positions", "failed", str(error), cure)
    except EventSourcingError as error:
        yield Finding("store", "failed", str(error), "see the checks above")


def _disk(settings: Settings) -> Finding:
    folder = next(path for path in (settings.data_dir, *settings.data_dir.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    says = f"{free / 1024**3:.1f} GiB free at {settings.data_dir}"
    if free < MIN_FREE_BYTES:
        return Finding("disk", "failed", says, "make room, or move ESM_DATA_DIR to a larger disk")
    return Finding("disk", "ok", says)


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    says = f"{memory.available / 1024**3:.1f} of {memory.total / 1024**3:.1f} GiB available"
    if memory.available < MIN_FREE_MEMORY * memory.total:
        cure = "smaller batch_size in replays, a smaller heap for Kafka (KAFKA_HEAP_OPTS), or more memory"
        return Finding("memory", "warning", says, cure)
    return Finding("memory", "ok", says)


async def _service(client: httpx2.AsyncClient, settings: Settings, name: str, port: int) -> Finding:
    try:
        answer = await client.get(f"{_base(settings, port)}/health")
        report = answer.json() if answer.headers.get("content-type") == "application/json" else {}
    except (httpx2.HTTPError, ValueError):
        report = None
    setting = f"ESM_{name.replace('-', '_').upper()}_PORT"
    if report is None:
        cure = f"esm up, or docker-compose up {name}; {setting} is another port"
        return Finding(name, "warning", f"nobody answers on port {port}", cure)
    if report.get("service") != name:
        cure = f"free the port (ss -ltnp shows who listens), or set {setting}"
        return Finding(name, "failed", f"port {port} belongs to another program", cure)
    status = str(report["status"])
    if status == "healthy":
        return Finding(name, "ok", f"healthy on port {port}")
    bad = [key for key, check in report["checks"].items() if check["status"] in ("down", "stalled")]
    return Finding(name, "failed", f"{status}: {', '.join(bad)}", "see the checks of these")


def _base(settings: Settings, port: int) -> str:
    scheme = "http" if settings.tls_cert_file is None else "https"
    host = "127.0.0.1" if settings.bind_host == "0.0.0.0" else settings.bind_host  # noqa: S104 - compared
    return f"{scheme}://{host}:{port}"


async def _dagster(client: httpx2.AsyncClient, settings: Settings) -> AsyncIterator[Finding]:
    """Whether the daemon lives and the jobs are loaded, as Dagster's webserver sees it."""
    url = _base(settings, settings.dagster_port).replace("https", "http")
    try:
        answer = await client.post(f"{url}/graphql", json={"query": _DAGSTER})
        data = answer.json()["data"]
    except httpx2.HTTPError:
        cure = "esm up, or docker-compose up; nothing but schedules, sensors and the UI needs it"
        yield Finding("dagster", "warning", f"nobody answers on port {settings.dagster_port}", cure)
        return
    except (ValueError, KeyError, TypeError):
        cure = "free the port (ss -ltnp shows who listens), or set ESM_DAGSTER_PORT"
        says = f"port {settings.dagster_port} belongs to another program"
        yield Finding("dagster", "failed", says, cure)
        return
    for entry in data["workspaceOrError"].get("locationEntries", []):
        loaded = entry["locationOrLoadError"] or {}
        if loaded.get("__typename") == "RepositoryLocation":
            yield Finding("dagster jobs", "ok", f"{entry['name']} is loaded")
        else:
            says = f"{entry['name']} cannot be loaded: {_first_line(loaded.get('message', 'no answer'))}"
            cure = "the code server's log says why (docker-compose logs dagster-code-server)"
            yield Finding("dagster jobs", "failed", says, cure)
    daemons = data["instance"]["daemonHealth"]["allDaemonStatuses"]
    dead = sorted(daemon["daemonType"].lower() for daemon in daemons if _is_dead(daemon))
    if dead:
        cure = "exactly one daemon must run: esm up, or docker-compose up dagster-daemon"
        yield Finding("dagster daemon", "failed", f"no sign of life from {', '.join(dead)}", cure)
    else:
        yield Finding("dagster daemon", "ok", "alive")


def _is_dead(daemon: dict[str, object]) -> bool:
    """Dagster itself waits half an hour before it says so."""
    beat = daemon["lastHeartbeatTime"]
    silent = not isinstance(beat, float) or time.time() - beat > DAEMON_SILENT_S
    return bool(daemon["required"]) and (silent or not daemon["healthy"])


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:200]
