"""`esm db`: the event database's schema, and the embedded server."""

from __future__ import annotations

import asyncio

import typer

from api.cli.screen import console
from eventsourcing.config import Settings
from eventsourcing.storage.embedded import EVENT_DATABASE, EmbeddedPostgres
from eventsourcing.storage.schema import upgrade

app = typer.Typer(no_args_is_help=True, help="The event database.")


@app.command("upgrade")
def upgrade_schema() -> None:
    """Bring the schema of the event database to the version this program needs."""
    settings = Settings.load()
    server = None
    url = settings.database_url
    if url is None:
        server = EmbeddedPostgres(settings.data_dir)
        started = server.start()
        server.ensure_database(EVENT_DATABASE)
        url = server.url(EVENT_DATABASE)
    try:
        version = asyncio.run(upgrade(url))
    finally:
        if server is not None and started:
            server.stop()
    console.print(f"The event database is at schema version [bold]{version}[/bold].")


@app.command("stop")
def stop_server() -> None:
    """Stop the embedded PostgreSQL of the data directory, if it runs."""
    server = EmbeddedPostgres(Settings.load().data_dir)
    if not server.running():
        console.print("The embedded PostgreSQL is not running.")
        return
    server.start()
    server.stop()
    console.print("The embedded PostgreSQL is stopped.")
