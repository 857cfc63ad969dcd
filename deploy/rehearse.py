"""The Compose file without an engine: each container's command as a process, in the same order.

A service gets an address of its own on loopback, where its name would lead inside a Compose network; its
environment, secrets, volumes and command are the file's, names and paths put in place. As root on Linux a
container's bounds are kept as well: a file system that is read-only but for its volumes and /tmp, the user
of the image, no capabilities. Kafka and PostgreSQL are real ones, given by their addresses.

States of a container: not started → running (healthy once its check succeeds) → ended.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PROGRAMS = Path(sys.executable).parent
USER = "10001"
HEALTHY_WITHIN_S, ENDS_WITHIN_S = 120, 180
_CHECK_S = 60

_TMP = "--bind /tmp" if ROOT.is_relative_to("/tmp") else "-t tmpfs -o mode=1777 tmpfs"  # noqa: S108 - a container's
_ISOLATE = f"""
mount --make-rprivate / && mount --bind "$0" "$0" && mount {_TMP} /tmp &&
mount -o remount,ro,bind / && exec "$@"
"""
"""What stands below the first argument stays writable; everything else but /tmp does not. A /tmp that
holds the checkout is not replaced by an empty one."""


class RehearsalError(Exception):
    """A container did not do what the Compose file says; the message names it and ends with its log."""


def load_compose(path: Path) -> dict[str, Any]:
    """The services of a Compose file and of those it includes, variables put in."""
    content = yaml.safe_load(_interpolated(path.read_text("utf-8")))
    merged: dict[str, Any] = {"services": {}, "secrets": {}}
    for included in content.get("include", []):
        merged["services"] |= load_compose(path.parent / included)["services"]
    merged["services"] |= content["services"]
    merged["secrets"] |= content.get("secrets", {})
    return merged


def _interpolated(text: str) -> str:
    """Variables and their defaults as Compose puts them in; `$$` is a dollar."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return os.environ.get(match["name"]) or match["default"] or ""

    return re.sub(r"\$\$|\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}", value, text)


@dataclass
class Container:
    """One service's command as a process."""

    name: str
    command: list[str]
    environment: dict[str, str]
    check: list[str] | None
    grace_s: float
    log: Path
    directory: Path
    isolated: bool
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the command; its output goes to its log."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._bounded(self.command),
                env=self.environment,
                cwd=self.directory,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _bounded(self, command: list[str]) -> list[str]:
        if not self.isolated:
            return command
        # The user of the image may read the checkout and its interpreter here, and write nowhere else.
        user = [f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs"]
        reads = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
        as_user = ["setpriv", *user, *reads, "--bounding-set=-all,+dac_read_search", *command]
        return ["unshare", "--mount", "sh", "-c", _ISOLATE, str(self.directory), *as_user]

    def healthy(self) -> bool:
        """Whether the health check succeeds now; a container without one is healthy while it runs."""
        self.running()
        if self.check is None:
            return True
        done = subprocess.run(
            self._bounded(self.check),
            env=self.environment,
            cwd=self.directory,
            capture_output=True,
            timeout=_CHECK_S,
            check=False,
        )
        return done.returncode == 0

    def running(self) -> None:
        """Raise RehearsalError when the process has ended."""
        assert self.process is not None, "it was started"
        if self.process.poll() is not None:
            raise self.error(f"ended with {self.process.returncode}")

    def await_healthy(self) -> None:
        """Return once it is healthy. Raises RehearsalError."""
        deadline = time.monotonic() + HEALTHY_WITHIN_S
        while not self.healthy():
            if time.monotonic() > deadline:
                raise self.error("does not become healthy")
            time.sleep(0.2)

    def await_end(self) -> None:
        """Return once it ended well. Raises RehearsalError."""
        assert self.process is not None, "it was started"
        if self.process.wait(timeout=ENDS_WITHIN_S) != 0:
            raise self.error(f"ended with {self.process.returncode}")

    def stop(self) -> int | None:
        """Ask it to end, as `docker stop` does; its exit code, None when the grace was too short."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=self.grace_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            return None

    def error(self, what: str) -> RehearsalError:
        """What went wrong, with the end of the log."""
        return RehearsalError(f"{self.name} {what}\n{self.log.read_text('utf-8', 'replace')[-3000:]}")


@dataclass
class Rehearsal:
    """A Compose file's own services as processes below `directory`.

    `addresses` tells where the services of other images are, as `name:port` inside the network → address.
    """

    compose: Mapping[str, Any]
    directory: Path
    addresses: Mapping[str, str]
    containers: dict[str, Container] = field(default_factory=dict)
    ended: dict[str, int | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.isolated = sys.platform == "linux" and os.geteuid() == 0 and shutil.which("setpriv") is not None
        self._subnet = f"127.{random.randrange(16, 240)}.{random.randrange(1, 250)}"  # noqa: S311 - a place
        own = [name for name, service in self.compose["services"].items() if "build" in service]
        self._own = {name: f"{self._subnet}.{place}" for place, name in enumerate(own, start=1)}
        self._data = self.directory / "data"
        self._secrets = self.directory / "secrets"
        for folder in (self._data, self._data / "mappings", self._data / "sources", self._secrets):
            folder.mkdir(parents=True, exist_ok=True)
            if self.isolated:
                os.chown(folder, int(USER), int(USER))
        for name, secret in self.compose["secrets"].items():
            text = (ROOT / secret["file"]).read_text("utf-8")
            (self._secrets / name).write_text(self._placed(text), "utf-8")

    def address(self, name: str) -> str:
        """The loopback address that stands for a service's name."""
        return self._own[name]

    def up(self, *names: str) -> None:
        """Start services and whatever they depend on, each as its conditions say; all without a name."""
        for name in names or self._own:
            self._up(name)

    def _up(self, name: str) -> None:
        if name in self.containers or name not in self._own:
            return
        service = self.compose["services"][name]
        for other, how in service.get("depends_on", {}).items():
            self._up(other)
            if other not in self.containers:
                continue  # Kafka and the database run already
            if how["condition"] == "service_completed_successfully":
                self.containers[other].await_end()
            elif how["condition"] == "service_healthy":
                self.containers[other].await_healthy()
        self.containers[name] = self._container(name, service)
        self.containers[name].start()

    def await_healthy(self) -> None:
        """Return once everything that is to go on running is healthy. Raises RehearsalError."""
        for container in self.containers.values():
            if container.check is not None:
                container.await_healthy()

    def down(self) -> dict[str, int | None]:
        """Stop what runs, last started first; the exit codes, None for what did not end in its grace."""
        for name, container in reversed(self.containers.items()):
            self.ended[name] = container.stop()
        self.containers = {}
        return self.ended

    def _container(self, name: str, service: Mapping[str, Any]) -> Container:
        given = {key: str(value) for key, value in service.get("environment", {}).items()}
        image = {
            "PATH": f"{PROGRAMS}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "HOME": str(self._data),
            "ESM_DATA_DIR": str(self._data),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        check = service.get("healthcheck", {})
        given_secrets = {f"/run/secrets/{secret}" for secret in service.get("secrets", [])}
        for value in given.values():
            if value.startswith("/run/secrets/") and value not in given_secrets:
                raise RehearsalError(f"{name} is not given the secret {value}")
        return Container(
            name=name,
            command=self._words(service["command"], name),
            environment=image | {key: self._placed(value, name) for key, value in given.items()},
            check=self._words(check["test"][1:], name) if check.get("test") else None,
            grace_s=float(str(service["stop_grace_period"]).removesuffix("s")),
            log=self.directory / f"{name}.log",
            directory=self._data,
            isolated=self.isolated,
        )

    def _words(self, words: list[str], name: str) -> list[str]:
        programs = {"python": sys.executable, "esm": str(PROGRAMS / "esm")}
        return [programs.get(str(word), self._placed(str(word), name)) for word in words]

    def _placed(self, text: str, name: str = "") -> str:
        """The text with this machine's addresses and paths in place of a network's and an image's."""
        if name:
            text = re.sub(r"(?<![\d.])(127\.0\.0\.1|0\.0\.0\.0)(?![\d.])", self._own[name], text)
        for place, address in self.addresses.items():
            text = text.replace(place, address)
        for other, address in self._own.items():
            text = re.sub(rf"(?<![\w.-]){re.escape(other)}(?=:\d)", address, text)
        text = text.replace("/run/secrets/", f"{self._secrets}/")
        return text.replace("/app/probe.py", str(ROOT / "deploy" / "probe.py"))
