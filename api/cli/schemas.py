"""`esm events schemas`: what the registered events promise to those who read them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from api.cli.screen import console
from eventsourcing.config import Settings
from eventsourcing.errors import ConfigurationError
from eventsourcing.plugins import load_plugins
from eventsourcing.schema_changes import accept, changes, refuse_breaking
from eventsourcing.schemas import Schema, event_schemas, read_schemas, write_schemas
from eventsourcing.wording import counted

app = typer.Typer(no_args_is_help=True, help="JSON Schemas of the registered events, plugins included.")

Directory = Annotated[Path, typer.Argument(help="One file a type and version, and event.json.")]


@app.command("export")
def export_schemas(directory: Directory) -> None:
    """Write the schemas of the code into a directory, whatever stands there."""
    schemas = _of_the_code()
    write_schemas(directory, schemas)
    console.print(f"{counted(len(schemas), 'schema')} in {directory}.")


@app.command("check")
def check_schemas(directory: Directory) -> None:
    """Hold the code against the accepted schemas; a breaking change fails and nothing is written."""
    found = changes(_accepted(directory), _of_the_code())
    refuse_breaking(found)
    for change in found:
        console.print(str(change), highlight=False, markup=False)
    hint = f"; `esm events schemas accept {directory}` takes them in" if found else ""
    console.print(f"{len(found)} compatible changes{hint}." if found else "No change.", markup=False)


@app.command("accept")
def accept_schemas(directory: Directory) -> None:
    """Take compatible changes into the accepted schemas; a breaking one fails and nothing is written."""
    accepted = _accepted(directory)
    schemas = accept(accepted, _of_the_code())
    changed = {name: schema for name, schema in schemas.items() if accepted.get(name) != schema}
    write_schemas(directory, changed)
    console.print(f"{len(changed)} of {len(schemas)} schemas were written.")


def _of_the_code() -> dict[str, Schema]:
    load_plugins(Settings.load())
    return event_schemas()


def _accepted(directory: Path) -> dict[str, Schema]:
    try:
        return read_schemas(directory)
    except (ValueError, OSError) as error:
        raise ConfigurationError(str(error)) from error
