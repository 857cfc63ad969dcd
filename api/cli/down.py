"""`esm down`: stop what `esm up` runs, from elsewhere."""

from __future__ import annotations

import typer

from api.cli.processes import Supervisor
from api.cli.screen import console
from eventsourcing.config import Settings

app = typer.Typer()


@app.command()
def down() -> None:
    """Stop what `esm up` runs on this data directory."""
    if Supervisor(Settings.load()).shutdown():
        console.print("Stopping; `esm up` ends when everything has.")
    else:
        console.print("Nothing is up.")
