"""`esm`, the command line. Every failure is one line on stderr, or one for each error of a mapping, and a
non-zero exit.

A command's module is imported when the command is called: looking at events needs no Dagster.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from eventsourcing.errors import EventSourcingError
from eventsourcing.secrets import redact_url

MODULES = {
    "demo": "api.cli.demo",
    "up": "api.cli.up",
    "down": "api.cli.down",
    "worker": "api.cli.worker",
    "migrate": "api.cli.migrate",
    "events": "api.cli.events",
    "read-models": "api.cli.read_models",
    "snapshots": "api.cli.snapshots",
    "consumers": "api.cli.consumers",
    "dlq": "api.cli.dlq",
    "bus": "api.cli.bus",
    "doctor": "api.cli.doctor",
    "sequences": "api.cli.sequences",
    "db": "api.cli.db",
    "dagster": "api.cli.dagster",
    "keys": "api.cli.keys",
    "openapi": "api.cli.openapi",
}
"""Command → the module whose `app` it is, in the order of the help."""


class LazyCommands(TyperGroup):
    """The commands of `MODULES`, each imported when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the signature is given
        return list(MODULES)

    def get_command(self, ctx: Any, name: str) -> Any:  # noqa: ARG002 - the signature is given
        if name not in MODULES:
            return None
        commands = import_module(MODULES[name]).app
        commands._add_completion = False  # the shell completes `esm`, not a command of it
        command = typer.main.get_command(commands)
        command.name = name
        return command


app = typer.Typer(
    cls=LazyCommands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


@app.callback()
def esm() -> None:
    """Move users and admins from a legacy system to a new one, and prove what happened to each."""


def main() -> None:
    """Run the command line."""
    try:
        app()
    except EventSourcingError as error:
        sys.exit(f"esm: {redact_url(str(error))}")
    except KeyboardInterrupt:
        sys.exit(130)
