"""Every container's command, started in the order of the Compose file: the system works as published."""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from deploy.rehearse import ROOT, Rehearsal, RehearsalError, load_compose
from tests.deployment.conftest import Deployment

pytestmark = pytest.mark.timeout(600)

EVENTS, REPLAYS, WORKER, DAGSTER = 8006, 8007, 9108, 3000

PUBLISHED = """
curl -X POST http://localhost:8006/events -H "Content-Type: application/json" -d '{
  "event_type": "migration.started", "aggregate_id": "migration-123", "aggregate_type": "migration",
  "data": {"source_config": {"host": "source.example.com"}, "target_config": {"host": "target.example.com"}}}'
curl "http://localhost:8006/events?aggregate_id=migration-123"
curl "http://localhost:8006/events/stats"
curl "http://localhost:8006/migrations/migration-123/stats"
curl -X POST http://localhost:8007/replay -H "Content-Type: application/json" -d '{
  "replay_type": "aggregate", "aggregate_id": "migration-123"}'
curl -X POST http://localhost:8007/snapshot -H "Content-Type: application/json" -d '{
  "aggregate_id": "migration-123", "up_to_version": 50}'
curl http://localhost:8006/health
curl http://localhost:8007/health
"""


def curl(deployment: Deployment, command: str) -> Any:
    """Run a published command against the rehearsal; its answer."""
    for port, service in ((EVENTS, "event-service"), (REPLAYS, "replay-service")):
        command = command.replace(f"http://localhost:{port}", deployment.url(service, port))
    words = [*shlex.split(command), "--silent", "--show-error", "--fail-with-body", "--max-time", "60"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def until(what: Callable[[], Any], within_s: float = 60) -> Any:
    """What becomes true."""
    deadline = time.monotonic() + within_s
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.2)
    return found


def test_the_published_commands_work_as_written(deployment: Deployment) -> None:
    stored, listed, stats, _, replay, snapshot, events, replays = (
        curl(deployment, command) for command in re.split(r"\n(?=curl)", PUBLISHED.strip())
    )
    assert stored["event_version"] >= 1
    assert [event["aggregate_id"] for event in listed] == ["migration-123"] * len(listed)
    assert stats["events_by_type"]["migration.started"] >= 1
    assert replay["status"] == "started"
    assert snapshot["state"]["status"] == "started"
    assert (events["service"], replays["service"]) == ("event-service", "replay-service")
    assert events["checks"]["kafka"] == {"status": "up"}
    done = curl(deployment, f"curl 'http://localhost:8007/replay/{replay['replay_id']}?wait=30'")
    assert done["status"] == "completed"
    migration = curl(deployment, "curl http://localhost:8006/migrations/migration-123/stats")
    assert migration["status"] == "started"


def test_the_stream_tells_of_what_was_stored(deployment: Deployment) -> None:
    stored = httpx2.post(f"{deployment.url('event-service', EVENTS)}/events", json=started("streamed"))
    assert stored.status_code == 201
    url = f"{deployment.url('replay-service', REPLAYS)}/events/stream?event_types=migration.started"
    with httpx2.stream("GET", url, timeout=30) as response:
        for line in response.iter_lines():
            if line.startswith("data: ") and json.loads(line[6:]).get("aggregate_id") == "streamed":
                return
    pytest.fail("the stream ended")


def started(aggregate_id: str) -> dict[str, Any]:
    return {
        "event_type": "migration.started",
        "aggregate_id": aggregate_id,
        "aggregate_type": "migration",
        "data": {"source_config": {}, "target_config": {}},
    }


def test_dagster_has_the_jobs_from_the_code_server_and_its_daemon_is_alive(deployment: Deployment) -> None:
    question = """{
      repositoriesOrError { ... on RepositoryConnection { nodes { location { name } jobs { name } } } }
      instance { daemonHealth { allDaemonStatuses { daemonType healthy required } } }
    }"""

    def healthy() -> Any:
        url = f"{deployment.url('dagster-webserver', DAGSTER)}/graphql"
        data = httpx2.post(url, json={"query": question}, timeout=30).json()["data"]
        daemons = data["instance"]["daemonHealth"]["allDaemonStatuses"]
        return data if all(daemon["healthy"] for daemon in daemons if daemon["required"]) else None

    (repository,) = until(healthy)["repositoriesOrError"]["nodes"]
    assert repository["location"]["name"] == "migration"
    assert {"migrate", "replay", "backfill"} <= {job["name"] for job in repository["jobs"]}


def test_a_process_has_the_rights_of_its_role_and_none_of_the_owner(deployment: Deployment) -> None:
    def refused(user: str, password: str, database: str, statement: str) -> str:
        server = deployment.database
        host = deployment.rehearsal.addresses["event-store-db:5432"].partition(":")[0]
        done = subprocess.run(
            [server.bin / "psql", "-qX", "-h", host, "-U", user, "-d", database, "-c", statement],
            env={"PGPASSWORD": password, "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0, done.stdout
        return done.stderr

    service = ("event_service", "service_password", "event_store")
    for statement in ("DELETE FROM events", "DROP TABLE states", "CREATE DATABASE mine", "TRUNCATE events"):
        assert re.search("permission denied|must be owner", refused(*service, statement)), statement
    assert "permission denied for database" in refused(*service[:2], "dagster", "SELECT 1")
    assert "permission denied" in refused("target_service", "target_password", "event_store", "TABLE events")
    assert "authentication failed" in refused("event_service", "guess", "event_store", "SELECT 1")


def test_nothing_is_written_beside_the_volume_and_nothing_secret_into_a_log(deployment: Deployment) -> None:
    rehearsal = deployment.rehearsal
    if not rehearsal.isolated:
        pytest.skip("keeping a file system read-only takes root on Linux")
    process = rehearsal.containers["event-service"].process
    assert process is not None
    assert all(user == 10001 for user in psutil.Process(process.pid).uids()[:2])
    mounts = Path(f"/proc/{process.pid}/mounts").read_text("utf-8").splitlines()
    (root,) = (line for line in mounts if line.split()[1] == "/" and line.split()[2] != "rootfs")
    assert "ro" in root.split()[3].split(",")
    for log in rehearsal.directory.glob("*.log"):
        text = log.read_text("utf-8")
        for secret in ("service_password", "event_password", "dagster_password", "development-only"):
            assert secret not in text, f"{log.name} holds a secret"


def test_log_lines_are_json_and_carry_the_request(deployment: Deployment) -> None:
    url = deployment.url("replay-service", REPLAYS)
    answer = httpx2.get(f"{url}/replay/nothing", headers={"X-Request-Id": "asked-1"})
    assert answer.headers["x-request-id"] == "asked-1"
    for name in ("event-service", "replay-service", "worker"):
        lines = (deployment.rehearsal.directory / f"{name}.log").read_text("utf-8").splitlines()
        assert all(json.loads(line)["level"] for line in lines), name


def documented() -> set[str]:
    """The names of docs/metrics.md."""
    return set(re.findall(r"^\| `(es_\w+)`", (ROOT / "docs" / "metrics.md").read_text("utf-8"), re.M))


@pytest.fixture
def worker_over_the_store(deployment: Deployment) -> Iterator[None]:
    """A second worker whose consumer groups follow the store, on the next port."""
    first = deployment.rehearsal.containers["worker"]
    environment = {**first.environment, "ESM_WORKER_PORT": str(WORKER + 1)}
    del environment["KAFKA_BOOTSTRAP_SERVERS"]
    second = replace(first, environment=environment, process=None, log=first.log.with_name("worker-2.log"))
    second.start()
    yield
    assert second.stop() == 0


def scraped(deployment: Deployment) -> set[str]:
    """The names of ours that a scrape of everything finds, with at least one value."""
    names: set[str] = set()
    places = (
        ("event-service", EVENTS),
        ("replay-service", REPLAYS),
        ("worker", WORKER),
        ("worker", WORKER + 1),
    )
    for service, port in places:
        try:
            answer = httpx2.get(f"{deployment.url(service, port)}/metrics", timeout=30)
        except httpx2.TransportError:
            continue  # the second worker is starting
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        for line in answer.text.splitlines():
            if line.startswith("es_"):
                names.add(re.sub(r"_(bucket|count|sum)$", "", re.split(r"[{ ]", line)[0]))
    return names


def replayed(deployment: Deployment) -> float:
    """How many replayed events the Replay Service has counted."""
    text = httpx2.get(f"{deployment.url('replay-service', REPLAYS)}/metrics").text
    found = re.search(r'^es_replay_events_total\{result="processed"\} (\S+)$', text, re.M)
    return float(found[1]) if found else 0.0


@pytest.mark.usefixtures("worker_over_the_store")
def test_every_documented_metric_is_scraped_and_every_scraped_one_is_documented(
    deployment: Deployment,
) -> None:
    events = deployment.url("event-service", EVENTS)
    for _ in range(2):  # the second is a version conflict
        httpx2.post(f"{events}/events", json=started("measured") | {"expected_version": "no_stream"})
    before = replayed(deployment)
    replay = curl(
        deployment,
        'curl -X POST http://localhost:8007/replay -H "Content-Type: application/json" '
        """-d '{"replay_type": "all"}'""",
    )
    done = curl(deployment, f"curl 'http://localhost:8007/replay/{replay['replay_id']}?wait=30'")
    # It ran in a worker process of the service, whose scrape tells of it all the same.
    assert replayed(deployment) - before == done["processed_events"] > 0
    deadline = time.monotonic() + 60  # the worker works on it
    while (found := scraped(deployment)) != documented() and time.monotonic() < deadline:
        time.sleep(1)
    assert found == documented()


def test_what_callers_send_stands_in_no_log(deployment: Deployment) -> None:
    """Secrets and people: refused, stored, failed on the way, in the path, in a header."""
    canary = "canary-8c1d"
    url = deployment.url("event-service", EVENTS)
    secret = started("leaky") | {"data": {"source_config": {"password": canary}, "target_config": {}}}
    assert httpx2.post(f"{url}/events", json=secret).status_code == 422
    person = {
        "event_type": "user.migrated",
        "aggregate_id": "user-77",
        "aggregate_type": "user",
        "data": {"username": canary, "source_data": {"mail": f"{canary}@example.org"}, "target_data": {}},
    }
    assert httpx2.post(f"{url}/events", json=person).status_code == 201
    httpx2.post(f"{url}/events", content=f'{{"event_type": "{canary}')
    httpx2.get(f"{url}/events", params={"cursor": canary}, headers={"Authorization": f"Bearer {canary}"})
    httpx2.get(f"{url}/{canary}", headers={"X-Request-Id": f"{canary} and more"})
    until(lambda: "user-77" in (deployment.rehearsal.directory / "worker.log").read_text("utf-8"))
    logs = [
        *deployment.rehearsal.directory.glob("*.log"),
        *deployment.rehearsal.directory.glob("data/logs/*"),
    ]
    for log in logs:
        assert canary not in log.read_text("utf-8"), log.name


def test_planted_a_setting_that_is_none_and_a_secret_that_is_not_given_are_found(place: Path) -> None:
    compose = load_compose(ROOT / "docker-compose.yml")
    service = compose["services"]["event-service"]
    service["depends_on"] = {}
    wrong = copy.deepcopy(compose)
    wrong["services"]["event-service"]["environment"]["ESM_TYPO"] = "1"
    rehearsal = Rehearsal(wrong, place, {})
    rehearsal.up("event-service")
    with pytest.raises(RehearsalError, match="ESM_TYPO is not a setting"):
        rehearsal.await_healthy()
    service["secrets"].remove("hmac_secret")
    with pytest.raises(
        RehearsalError, match="event-service is not given the secret /run/secrets/hmac_secret"
    ):
        Rehearsal(compose, place, {}).up("event-service")
