"""The processes of one machine and the supervisor that runs them.

supervisord starts them, restarts whichever dies, and stops them in reverse order; its configuration
and the logs stand in the data directory, and its socket answers who else asks.
"""

from __future__ import annotations

import configparser
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

import psutil
from supervisor.xmlrpc import SupervisorTransport

from eventsourcing.config import Settings
from eventsourcing.errors import ConfigurationError
from resources.dagster_home import workspace_file


@dataclass(frozen=True, slots=True)
class Process:
    """One supervised process; with a port it is a web server, and `setting` names the port."""

    name: str
    command: tuple[str, ...]
    port: int | None = None
    setting: str = ""
    shows: str = ""


def processes(settings: Settings) -> list[Process]:
    """What runs on one machine, in the order of starting."""
    python, host = sys.executable, settings.bind_host
    tool = Path(sys.executable).parent
    workspace = str(workspace_file(settings))
    dagster_port = str(settings.dagster_port)
    return [
        Process("worker", (python, "-m", "api.cli", "worker")),
        Process(
            "event-service",
            (python, "-m", "api.event_service"),
            settings.event_service_port,
            "ESM_EVENT_SERVICE_PORT",
            "events, statistics",
        ),
        Process(
            "replay-service",
            (python, "-m", "api.replay_service"),
            settings.replay_service_port,
            "ESM_REPLAY_SERVICE_PORT",
            "replays, snapshots, live stream",
        ),
        Process(
            "dagster-webserver",
            (python, "-m", "api.dagster_door", "-h", host, "-p", dagster_port, "-w", workspace),
            settings.dagster_port,
            "ESM_DAGSTER_PORT",
            "runs, jobs, sensors",
        ),
        Process("dagster-daemon", (str(tool / "dagster-daemon"), "run", "-w", workspace)),
    ]


_LONGEST_SOCKET = 90
"""A socket's name may have 107 bytes, and supervisord makes it under a longer one first."""


def _socket_of(folder: Path) -> Path:
    """Where the supervisor of a folder answers: there, or under a short name when the folder's is long."""
    path = folder / "supervisor.sock"
    if len(os.fsencode(path)) <= _LONGEST_SOCKET:
        return path
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"esm-{name}.sock"


class Supervisor:
    """supervisord on a data directory."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.data_dir / "supervisor"
        self._socket = _socket_of(self._folder)
        self.logs = settings.data_dir / "logs"

    def start(self, programs: list[Process], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start supervisord and everything under it. Raises ConfigurationError when it runs already."""
        if self.states() is not None:
            raise ConfigurationError(f"it is up already on {self._folder.parent}; stop it with `esm down`")
        for folder in (self._folder, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        self._socket.unlink(missing_ok=True)
        file = self._folder / "supervisord.conf"
        file.touch(mode=0o600)
        with file.open("w", encoding="utf-8") as text:
            self._configuration(programs).write(text)
        return subprocess.Popen(  # noqa: S603 - our own interpreter and our own file
            [sys.executable, "-m", "supervisor.supervisord", "-n", "-s", "-c", str(file)],
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C reaches us, and we stop it in order
        )

    def states(self) -> dict[str, dict[str, Any]] | None:
        """Every process by name, as supervisord sees it; None when it does not answer."""
        try:
            found: Any = self._proxy().supervisor.getAllProcessInfo()
        except (OSError, Fault):
            return None
        return {entry["name"]: entry for entry in found}

    def shutdown(self) -> bool:
        """Ask supervisord to stop everything and itself; False when it does not answer."""
        try:
            self._proxy().supervisor.shutdown()
        except (OSError, Fault):
            return False
        return True

    def _proxy(self) -> ServerProxy:
        transport = SupervisorTransport(None, None, f"unix://{self._socket}")
        return ServerProxy("http://localhost", transport=transport)

    def _configuration(self, programs: list[Process]) -> configparser.RawConfigParser:
        config = configparser.RawConfigParser()
        config["unix_http_server"] = {"file": str(self._socket), "chmod": "0700"}
        config["rpcinterface:supervisor"] = {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
        }
        config["supervisord"] = {
            "logfile": str(self.logs / "supervisord.log"),
            "pidfile": str(self._folder / "supervisord.pid"),
            "childlogdir": str(self.logs),
        }
        if os.geteuid() == 0:
            config["supervisord"]["user"] = "root"  # said, or it warns that nobody said so
        for place, program in enumerate(programs):
            config[f"program:{program.name}"] = {
                "command": " ".join(map(_quoted, program.command)),
                "priority": str(place),
                "autorestart": "true",
                "startsecs": "3",
                "startretries": "5",
                "stopwaitsecs": "10",
                "stopasgroup": "true",
                "killasgroup": "true",
                "redirect_stderr": "true",
                "stdout_logfile": str(self.logs / f"{program.name}.log"),
                "stdout_logfile_maxbytes": "10MB",
                "stdout_logfile_backups": "2",
            }
        return config


def refuse_used_ports(programs: list[Process], host: str) -> None:
    """Raise ConfigurationError for the first port that somebody listens on, naming who."""
    for program in programs:
        if program.port is None:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, program.port))
            except OSError as error:
                why = _holder(program.port) or error.strerror
                raise ConfigurationError(
                    f"port {program.port} of {program.name} cannot be used: {why}; "
                    f"free it or set {program.setting}"
                ) from error


def _holder(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,)
            if listens and connection.pid:
                return f"process {connection.pid}, {psutil.Process(connection.pid).name()}, listens on it"
    except psutil.Error:
        pass
    return ""


def _quoted(part: str) -> str:
    """One word of a command line in supervisord's notation, where % expands."""
    return '"' + part.replace("%", "%%").replace('"', '\\"') + '"'
