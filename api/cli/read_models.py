"""`esm read-models`: look at read models, rebuild one beside the live one, switch, look back in time."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, TypeVar

import typer

from api.cli.screen import console, table
from eventsourcing.bootstrap import open_system
from eventsourcing.canonical import encode
from eventsourcing.errors import ConfigurationError, NotFoundError
from eventsourcing.readmodels import read_model
from eventsourcing.rebuilds import RebuildProgress, Rebuilt, rebuild
from eventsourcing.storage.base import Storage
from eventsourcing.switching import describe_all, difference_rows, switch
from eventsourcing.time_travel import AsOf, state_as_of, states_as_of
from eventsourcing.wording import counted

app = typer.Typer(no_args_is_help=True, help="Read models: list, rebuild, switch, look back in time.")

Name = Annotated[str, typer.Argument(help="The read model.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
After = Annotated[str, typer.Option(help="Begin behind this key.")]
T = TypeVar("T")


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """Show which generation of each read model is live, and what stands beside it."""
    rows = asyncio.run(_over_storage(describe_all))
    if as_json:
        _lines(rows)
        return
    columns = ("read model", "", "table", "fold version", "position", "events behind", "differing rows")
    shown = [
        (
            row["name"] if place == "live" else "",
            one["state"],
            one["table"],
            one["fold_version"],
            one["position"],
            one["behind"],
            one.get("difference", {}).get("rows", ""),
        )
        for row in rows
        for place in ("live", "beside")
        if (one := row[place]) is not None
    ]
    console.print(table("Read models", columns, shown))


@app.command("rebuild")
def rebuild_model(
    name: Name,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over.")] = False,
    and_switch: Annotated[bool, typer.Option("--switch", help="Switch to it when it is done.")] = False,
    rows: Annotated[int, typer.Option("--rows", min=0, help="Show so many of the differing rows.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Fold a read model anew beside the live one, and show what differs; an interrupted rebuild goes on."""

    async def work(storage: Storage) -> tuple[Rebuilt, list[dict[str, Any]]]:
        model = read_model(name)
        result = await rebuild(storage, model, fresh=fresh, report=_shown(as_json))
        differing = await difference_rows(storage, model, limit=rows) if rows and result.difference else []
        if and_switch:
            await switch(storage, model)
        return result, [asdict(row) for row in differing]

    result, differing = asyncio.run(_over_storage(work))
    if as_json:
        _lines([{**result.to_dict(), "switched": and_switch}, *differing])
        return
    found = result.difference
    assert found is not None, "nobody asked it to stop"
    console.print(
        f"{result.table}, up to position {result.position:,}: {counted(found.same, 'row')} as live, "
        f"{found.changed:,} changed, {found.only_old:,} gone, {found.only_new:,} new"
        + ("; switched" if and_switch else "")
    )
    if differing:
        shown = [(row["key"], row["kind"], ", ".join(row["fields"])) for row in differing]
        console.print(table("Differing rows", ("key", "", "fields"), shown))


@app.command("differences")
def show_differences(
    name: Name,
    after: After = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1)] = 100,
) -> None:
    """Print the rows that differed when the rebuilt read model was compared, as JSON lines."""
    rows = asyncio.run(
        _over_storage(
            lambda storage: difference_rows(storage, read_model(name), after=after or None, limit=limit)
        )
    )
    _lines([asdict(row) for row in rows])


@app.command("switch")
def switch_model(name: Name, as_json: AsJson = False) -> None:
    """Make the rebuilt read model the live one, at once for every reader; once more switches back."""
    row = asyncio.run(_over_storage(lambda storage: switch(storage, read_model(name))))
    if as_json:
        _lines([row])
        return
    live = row["live"]
    console.print(
        f"{live['table']} is live, {counted(live['behind'], 'event')} behind; "
        f"beside: {row['beside']['table']}"
    )


@app.command("at")
def look_back(
    name: Name,
    position: Annotated[int | None, typer.Option(min=0, help="As of this position.")] = None,
    time: Annotated[datetime | None, typer.Option(help="As of the events up to this moment (UTC).")] = None,
    key: Annotated[str | None, typer.Option(help="Only this key.")] = None,
    after: After = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000)] = 100,
) -> None:
    """Print what a read model said then, as JSON lines: from the events, whatever it says now."""
    if position is None and time is None:
        raise ConfigurationError("say when: --position or --time")

    async def work(storage: Storage) -> list[tuple[str, Any]]:
        model, when = read_model(name), AsOf(position, time)
        if key is None:
            return list(await states_as_of(storage, model, when, after=after, limit=limit))
        state = await state_as_of(storage, model, key, when)
        if state is None:
            raise NotFoundError("state", key)
        return [(key, state)]

    _lines([{"key": key, "state": state} for key, state in asyncio.run(_over_storage(work))])


def _shown(as_json: bool) -> Callable[[RebuildProgress], Awaitable[bool]]:
    async def report(progress: RebuildProgress) -> bool:
        if not as_json and console.is_terminal:
            console.print(f"{progress.progress:5.1f} %, {progress.rate:,.0f} positions/s", end="\r")
        return True

    return report


def _lines(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        sys.stdout.write(encode(row).decode() + "\n")


async def _over_storage(work: Callable[[Storage], Awaitable[T]]) -> T:
    async with open_system() as system:
        return await work(system.store.storage)
