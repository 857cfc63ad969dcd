"""`esm`, the command line. Every failure is one line on stderr and a non-zero exit."""

from __future__ import annotations

import sys

import typer

from api.cli import db, demo, events, migrate, up, worker
from eventsourcing.errors import EventSourcingError
from eventsourcing.secrets import redact_url

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Move users and admins from a legacy system to a new one, and prove what happened to each.",
)
app.command("demo")(demo.demo)
app.command("up")(up.up)
app.command("down")(up.down)
app.command("worker")(worker.worker)
app.add_typer(migrate.app, name="migrate")
app.add_typer(events.app, name="events")
app.add_typer(db.app, name="db")


def main() -> None:
    """Run the command line."""
    try:
        app()
    except EventSourcingError as error:
        sys.exit(f"esm: {redact_url(str(error))}")
    except KeyboardInterrupt:
        sys.exit(130)
