"""`esm db`: the event database's schema, its recovery after a restore, and the embedded server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from api.cli.screen import console, pairs
from eventsourcing.config import Settings
from eventsourcing.errors import ConfigurationError
from eventsourcing.storage.embedded import EVENT_DATABASE, EmbeddedPostgres
from eventsourcing.storage.rebase import rebase
from eventsourcing.storage.upgrades import grant_rights, upgrade
from resources.logins import admit

app = typer.Typer(no_args_is_help=True, help="The event database.")


@contextmanager
def _event_database() -> Iterator[str]:
    """The URL of the event database; an embedded server that did not run runs for as long."""
    settings = Settings.load()
    if settings.database_url is not None:
        yield settings.database_url
        return
    server = EmbeddedPostgres(settings.data_dir)
    started = server.start()
    try:
        server.ensure_database(EVENT_DATABASE)
        yield server.url(EVENT_DATABASE)
    finally:
        if started:
            server.stop()


@app.command("upgrade")
def upgrade_schema() -> None:
    """Bring the schema of the event database, and its roles' rights, to what this program needs."""
    with _event_database() as url:
        version = asyncio.run(upgrade(url))
        missing = asyncio.run(grant_rights(url))
    console.print(f"The event database is at schema version [bold]{version}[/bold].")
    if missing:
        console.print(
            f"[yellow]This user may not create the roles {', '.join(missing)}.[/yellow] The owner of the "
            "tables needs none of them. To use them (docs/guides/roles.md), let an administrator run"
        )
        console.print("\n".join(f"    CREATE ROLE {role};" for role in missing), highlight=False)
        console.print("and repeat `esm db upgrade`.")


@app.command("admit")
def admit_user(
    url_file: Annotated[
        Path, typer.Argument(help="A file that holds the URL by which the user connects, password included.")
    ],
    role: Annotated[
        str | None,
        typer.Option(help="esm_writer, esm_relay, esm_reader; without one it owns its database."),
    ] = None,
) -> None:
    """Let a user in as its URL says: make the user, set its password, give it a role or its own database."""
    try:
        url = url_file.read_text("utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"{url_file}: {error.strerror}") from None
    with _event_database() as owner:
        name = admit(owner, url, role=role)
    console.print(f"{name} is admitted" + (f" as a member of {role}." if role else " with a database."))


@app.command("rebase")
def rebase_positions(
    highest: Annotated[
        int, typer.Argument(min=0, help="The highest position that any reader is known to have seen.")
    ] = 0,
    kafka_highest: Annotated[
        int, typer.Option(min=0, help="The highest position found in the headers of Kafka's topics.")
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
) -> None:
    """After a restore (docs/guides/backup-and-restore.md): move the store past every position that was
    handed out before."""
    with _event_database() as url:
        done = asyncio.run(rebase(url, seen=max(highest, kafka_highest), dry_run=dry_run))
    facts = {"head": done.head, "highest checkpoint": done.checkpoint, "highest position seen": done.seen}
    console.print(pairs("What the event database holds", facts))
    if done.last is None:
        console.print("Nobody has seen a position that the store does not have: nothing is to be done.")
        return
    console.print(
        f"Positions {done.first} to {done.last} {'would be' if dry_run else 'are'} recorded as lost; "
        f"the next event {'would get' if dry_run else 'gets'} position [bold]{done.next_position}[/bold]."
    )


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
