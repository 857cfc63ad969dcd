"""`esm dagster`: Dagster's own programs over our settings, each in place of this process."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from eventsourcing.config import Settings
from resources.dagster_home import LOCATION, apply_environment, prepare_dagster_home, workspace_file

app = typer.Typer()


class Tool(StrEnum):
    """What can be run."""

    WEBSERVER = "webserver"
    DAEMON = "daemon"
    CODE_SERVER = "code-server"
    MIGRATE = "migrate"
    DAEMON_ALIVE = "daemon-alive"
    CODE_SERVER_ALIVE = "code-server-alive"


@app.command()
def dagster(tool: Annotated[Tool, typer.Argument(help="Which of Dagster's programs.")]) -> None:
    """Run a program of Dagster: its webserver, its daemon, the server of our jobs, the upgrade of its
    storage, or the checks whether the daemon and the code server are alive."""
    settings = Settings.load()
    apply_environment(prepare_dagster_home(settings))
    command = _command(tool, settings)
    os.execv(command[0], command)  # noqa: S606 - a program of our own environment, with settings of ours


def _command(tool: Tool, settings: Settings) -> list[str]:
    programs = Path(sys.executable).parent
    host, port = settings.bind_host, _code_port(settings)
    lines = ("--log-format", "colored" if sys.stderr.isatty() else "json")
    workspace = str(workspace_file(settings))
    name, *arguments = {
        Tool.WEBSERVER: (
            *(Path(sys.executable).name, "-m", "api.dagster_door"),
            "-h",
            host,
            "-p",
            str(settings.dagster_port),
            "-w",
            workspace,
            *lines,
        ),
        Tool.DAEMON: ("dagster-daemon", "run", "-w", workspace, *lines),
        Tool.CODE_SERVER: (
            *("dagster", "code-server", "start", "-h", host, "-p", port),
            *("-m", "pipelines.definitions", "-a", "defs", "--location-name", LOCATION),
            *lines,
        ),
        Tool.MIGRATE: ("dagster", "instance", "migrate"),
        Tool.DAEMON_ALIVE: ("dagster-daemon", "liveness-check"),
        Tool.CODE_SERVER_ALIVE: ("dagster", "api", "grpc-health-check", "-h", host, "-p", port),
    }[tool]
    return [str(programs / name), *arguments]


def _code_port(settings: Settings) -> str:
    """The port of the code server that others are told of."""
    return (settings.dagster_code_server or "").rpartition(":")[2] or "4000"
