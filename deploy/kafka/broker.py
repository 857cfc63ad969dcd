"""A real Kafka broker for tests and development, without Docker: Apache Kafka's published jars on a JVM.

Maven fetches the jars once into the user's cache, named after the pom. The broker listens on loopback,
is up within seconds in a heap of 256 MB, and dies with whoever started it.

`python deploy/kafka/broker.py` is `make kafka`: it names the broker that the environment names, else has
Docker Compose start one, else starts one here and serves until Ctrl-C.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from string import Template

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

HERE = Path(__file__).parent
COMPOSE_FILE = HERE.parents[1] / "docker-compose.kafka.yml"
STARTS_WITHIN_S = 60
CLUSTER_ID = "4L6g3nShT-eMCtK--X86sw"
JAVA_OPTIONS = (
    "-Xms64m",
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",  # a broker that lives for minutes gains nothing from the optimising compiler
    "-XX:-UsePerfData",
    "-Djava.net.preferIPv4Stack=true",
)


class BrokerUnavailableError(Exception):
    """No broker can be started here; the message says what is missing."""


class Broker:
    """A broker on a directory of its own. Stopped and started again, it keeps its topics and its port.

    `properties` are added to the broker's own and overrule them, as for a listener beside the plain one;
    `users` with their passwords exist from its first start, for SCRAM-SHA-512.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        properties: Mapping[str, str] | None = None,
        users: Mapping[str, str] | None = None,
    ) -> None:
        self._directory, self._port = directory, port or _free_port()
        self._more, self._users = dict(properties or {}), dict(users or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """What clients take as `bootstrap.servers`."""
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """The process of the JVM, to stop or to kill."""
        assert self._process is not None, "the broker was not started"
        return self._process.pid

    def start(self) -> None:
        """Start, and return once it answers. Raises BrokerUnavailableError; then nothing runs."""
        java, libraries = _java(), jars()
        command = [java, *JAVA_OPTIONS, "-cp", f"{libraries}/*"]
        properties = self._directory / "server.properties"
        if not properties.exists():
            self._format(command, properties)
        with (self._directory / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_dies_with_parent(), *command, "kafka.Kafka", str(properties)],
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches whoever started it, who stops it in order
            )
        self._await_answer()

    def stop(self) -> None:
        """Stop in order; what was acknowledged stays."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End at once, as a power cut would."""
        self._end(signal.SIGKILL)

    def wait(self) -> None:
        """Return once the broker has ended by itself."""
        if self._process is not None:
            self._process.wait()

    def _format(self, command: list[str], properties: Path) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        template = Template((HERE / "server.properties").read_text("utf-8"))
        values = {"directory": self._directory, "port": self._port, "controller_port": _free_port()}
        draft = properties.with_suffix(".draft")
        more = "".join(f"{name}={value}\n" for name, value in self._more.items())
        draft.write_text(template.substitute(values) + more, "utf-8")
        tool = [*command, "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(draft)]
        for user, password in self._users.items():
            tool += ["--add-scram", f"SCRAM-SHA-512=[name={user},password={password}]"]
        done = subprocess.run(tool, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BrokerUnavailableError(f"the directory cannot be formatted: {done.stderr[-500:]}")
        draft.rename(properties)

    def _await_answer(self) -> None:
        client = AdminClient(
            {
                "bootstrap.servers": self.address,
                "log_level": 0,
                "reconnect.backoff.ms": 20,
                "reconnect.backoff.max.ms": 100,
            }
        )
        deadline = time.monotonic() + STARTS_WITHIN_S
        while time.monotonic() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                log = (self._directory / "broker.log").read_text("utf-8", "replace")
                raise BrokerUnavailableError(f"the broker ended at once: {log[-500:]}")
            try:
                client.list_topics(timeout=0.5)
            except KafkaException:
                continue
            return
        self.kill()
        raise BrokerUnavailableError(f"the broker did not answer within {STARTS_WITHIN_S} s")

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)  # one that was stopped would not hear
        self._process.send_signal(number)
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def jars() -> Path:
    """The folder with Kafka's jars, fetched by Maven when it is not there yet.

    Raises BrokerUnavailableError without Maven, or when it cannot fetch them.
    """
    pom = HERE / "pom.xml"
    name = hashlib.sha256(pom.read_bytes()).hexdigest()[:12]
    folder = cache() / f"jars-{name}"
    if folder.exists():
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        raise BrokerUnavailableError("Maven, which fetches Kafka, is not installed")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        draft = Path(name) / "jars"
        goal = ["dependency:copy-dependencies", f"-DoutputDirectory={draft}", "-DincludeScope=runtime"]
        done = subprocess.run(
            [maven, "--quiet", "--batch-mode", f"--file={pom}", *goal],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BrokerUnavailableError(f"Maven cannot fetch Kafka: {done.stdout[-500:]}")
        if not folder.exists():  # somebody else may have been quicker
            draft.rename(folder)
    return folder


def cache() -> Path:
    """Where jars and the development broker's topics are kept, outside the tree."""
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "event-sourced-migration" / "kafka"
    )


def _java() -> str:
    java = shutil.which("java")
    if java is None:
        raise BrokerUnavailableError("Java, on which Kafka runs, is not installed")
    return java


def _dies_with_parent() -> list[str]:
    """On Linux a broker does not outlive the thread that started it, whatever ends it."""
    tool = shutil.which("setpriv")
    return [tool, "--pdeathsig", "KILL"] if tool else []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _compose() -> bool:
    """Have Docker Compose start the broker; False where there is no engine."""
    docker = shutil.which("docker")
    if docker is None or not COMPOSE_FILE.exists():
        return False
    if subprocess.run([docker, "info"], capture_output=True, check=False).returncode:
        return False
    command = [docker, "compose", "-f", str(COMPOSE_FILE), "up", "--detach", "--wait", "kafka"]
    return subprocess.run(command, check=False).returncode == 0


def main() -> None:
    """Name a broker, starting one where none is given."""
    given = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if given:
        print(f"KAFKA_BOOTSTRAP_SERVERS={given} is in the environment; nothing to start.")
        return
    if _compose():
        print("KAFKA_BOOTSTRAP_SERVERS=localhost:9092")
        return
    broker = Broker(cache() / "broker", port=9092)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        broker.start()
        print(f"KAFKA_BOOTSTRAP_SERVERS={broker.address}\nCtrl-C stops it; its topics are kept.", flush=True)
        broker.wait()
    except KeyboardInterrupt:
        print()
    except BrokerUnavailableError as error:
        sys.exit(f"kafka: {error}")
    finally:
        broker.stop()


if __name__ == "__main__":
    main()
