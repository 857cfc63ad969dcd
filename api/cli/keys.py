"""`esm keys`: make, list and revoke the API keys of the services."""

from __future__ import annotations

import asyncio
import getpass
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Annotated

import typer

from api.access import MEANINGS, Scope
from api.cli.screen import console, table
from api.gate import REVOKED_WITHIN_S
from api.keys import ApiKey, create_key, list_keys, revoke_key
from eventsourcing import ConfigurationError, EventSourcingError, audit
from eventsourcing.bootstrap import open_system
from eventsourcing.canonical import encode
from eventsourcing.storage.base import Storage

app = typer.Typer(no_args_is_help=True, help="API keys of the services.")

By = Annotated[
    str, typer.Option("--by", help="Who does it; it stands in the audit.", default_factory=getpass.getuser)
]
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Who will call with it, as in billing-import.")],
    by: By,
    scope: Annotated[
        list[Scope], typer.Option("--scope", "-s", help="; ".join(f"{s}: {m}" for s, m in MEANINGS.items()))
    ],
    expires: Annotated[
        str, typer.Option("--expires", "-e", help="After 90d, 12h or 30m; never: not at all.")
    ] = "90d",
) -> None:
    """Make a key and print it, alone on stdout; nobody can read it again. Two of a name may live at once."""
    key, text = asyncio.run(_create(name, scope, _lasting(expires), by))
    print(text)  # noqa: T201 - stdout holds the key and nothing else, for a pipe or a file
    until = f"until {key.expires_at:%Y-%m-%d %H:%M} UTC" if key.expires_at else "until it is revoked"
    typer.echo(f"{key.id} opens {', '.join(key.scopes)} {until}.", err=True)


@app.command("list")
def show(as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False) -> None:
    """Show the keys: never the secrets, which are not kept."""
    keys = asyncio.run(_list())
    if as_json:
        for key in keys:
            print(encode(_facts(key)).decode())  # noqa: T201 - for a program that reads it
        return
    rows = [tuple("" if fact is None else str(fact) for fact in _facts(key).values()) for key in keys]
    console.print(table("API keys", ("id", "name", "state", "scopes", "created", "expires", "revoked"), rows))


@app.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `esm keys list` shows it.")],
    by: By,
) -> None:
    """Let a key open nothing any more."""
    asyncio.run(_revoke(key_id, by))
    console.print(f"{key_id} is refused everywhere within {REVOKED_WITHIN_S:g} seconds.")


async def _create(name: str, scopes: list[Scope], lasts: timedelta | None, by: str) -> tuple[ApiKey, str]:
    async with open_system() as system:
        storage = system.store.storage
        what = {"name": name, "scopes": [str(scope) for scope in scopes]}
        async with _recorded(storage, "keys create", what, by) as outcome:
            key, text = await create_key(storage, name, scopes, lasts=lasts)
            outcome.append(key.id)
        return key, text


async def _list() -> list[ApiKey]:
    async with open_system() as system:
        return await list_keys(system.store.storage)


async def _revoke(key_id: str, by: str) -> None:
    async with open_system() as system:
        storage = system.store.storage
        async with _recorded(storage, "keys revoke", {"id": key_id}, by) as outcome:
            await revoke_key(storage, key_id)
            outcome.append("revoked")


@asynccontextmanager
async def _recorded(
    storage: Storage, action: str, what: Mapping[str, object], by: str
) -> AsyncIterator[list[str]]:
    """An act with its entry in the audit; what is added to the list is its outcome."""
    async with storage.transaction() as transaction:
        entry = await audit.begin(transaction, action, by=by, what=what, why="asked for on the command line")
    outcome: list[str] = []
    try:
        yield outcome
    except EventSourcingError as error:
        outcome.append(f"refused: {error}")
        raise
    finally:
        async with storage.transaction() as transaction:
            await audit.complete(transaction, entry, ", ".join(outcome))


def _facts(key: ApiKey) -> dict[str, object]:
    return {
        "id": key.id,
        "name": key.name,
        "state": key.state(),
        "scopes": " ".join(key.scopes),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
    }


def _lasting(text: str) -> timedelta | None:
    if text == "never":
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})([dhm])", text, re.ASCII)
    if match is None:
        raise ConfigurationError("--expires is a number of days, hours or minutes, as in 90d, or never")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
