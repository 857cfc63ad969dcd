"""`esm sequences`: whether streams keep to the process models that the system and its plugins declare."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer

from api.cli.screen import console, pairs, table
from eventsourcing.bootstrap import open_system
from eventsourcing.canonical import encode
from eventsourcing.config import Settings
from eventsourcing.plugins import load_plugins
from eventsourcing.process_checks import ProcessSummary, check_process, check_processes
from eventsourcing.process_models import process_model, process_models
from eventsourcing.wording import counted

app = typer.Typer(no_args_is_help=True, help="Process models, and the streams that broke them.")

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


@app.command("list")
def list_models(*, as_json: AsJson = False) -> None:
    """Show the process models."""
    load_plugins(Settings.load())
    rows = [
        {"name": model.name, "aggregate_types": list(model.aggregate_types), "description": model.description}
        for model in process_models()
    ]
    if as_json:
        _lines(rows)
        return
    shown = [(row["name"], ", ".join(row["aggregate_types"]), row["description"]) for row in rows]
    console.print(table("Process models", ("name", "of", "description"), shown))


@app.command("check")
def check(
    model: Annotated[str, typer.Argument(help="The name of a process model.")],
    aggregate: Annotated[
        str | None, typer.Option("--aggregate", "-a", help="Only this aggregate_id; all without it.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Check one aggregate, or all of a model; exit code 1 when one broke it."""
    outcome = asyncio.run(_checked(model, aggregate))
    if isinstance(outcome, ProcessSummary):
        _show_all(outcome, as_json=as_json)
        valid = outcome.is_valid
    else:
        _show_one(outcome, as_json=as_json)
        valid = bool(outcome["is_valid"])
    if not valid:
        sys.exit(1)


async def _checked(name: str, aggregate_id: str | None) -> ProcessSummary | dict[str, Any]:
    async with open_system() as system:
        model = process_model(name)
        if aggregate_id is None:
            return await check_processes(system.store, model)
        return await check_process(system.store, model, aggregate_id)


def _show_one(outcome: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        _lines([outcome])
        return
    violation = outcome["violation"] or {}
    facts = {name: outcome[name] for name in ("model", "status", "events")}
    next_ = {"expected next": ", ".join(outcome["expected_next"])} if outcome["expected_next"] else {}
    told = {name: _text(violation[name]) for name in _TOLD if name in violation}
    console.print(pairs(outcome["aggregate_id"], {**facts, **next_, **told}))


def _show_all(summary: ProcessSummary, *, as_json: bool) -> None:
    rows = [violation.facts() for violation in summary.violations]
    if as_json:
        _lines(rows)
        return
    if rows:
        shown = [tuple(_text(row[name]) for name in ("subject", *_TOLD)) for row in rows]
        console.print(table(f"What broke {summary.model}", ("subject", *_TOLD), shown))
    console.print(
        f"{counted(summary.subjects, 'subject')}, {counted(summary.events, 'event')}, "
        f"{summary.broken:,} broken"
    )


_TOLD = ("reason", "aggregate_id", "event_version", "position", "expected", "actual")


def _text(value: Any) -> Any:
    return " | ".join(value) if isinstance(value, list | tuple) else value


def _lines(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        sys.stdout.write(encode(row).decode() + "\n")
