"""`esm doctor`: look at everything, say what is wrong and what helps."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from api.cli.screen import console
from api.doctor import findings
from eventsourcing.canonical import encode
from eventsourcing.config import Settings
from eventsourcing.diagnosis import Finding
from eventsourcing.secrets import redact

app = typer.Typer()

_SIGNS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "red")}


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Check database, followers, Kafka, services, Dagster and machine; name the cure of what is wrong.

    Exits with 1 when something does not work; a warning is none of that."""
    found = asyncio.run(_all(Settings.load(), as_json=as_json))
    if not as_json:
        console.print(_table(found))
    if any(finding.status == "failed" for finding in found):
        raise typer.Exit(1)


async def _all(settings: Settings, *, as_json: bool) -> list[Finding]:
    found = []
    async for finding in findings(settings):
        found.append(finding)
        if as_json:
            line = {name: redact(value) for name, value in asdict(finding).items()}
            sys.stdout.write(encode(line).decode() + "\n")
    return found


def _table(found: list[Finding]) -> Table:
    made = Table(title="esm doctor", title_justify="left", title_style="bold cyan", header_style="bold")
    for column in ("", "check", "finding", "cure"):
        made.add_column(column, overflow="fold")
    for finding in found:
        sign, colour = _SIGNS[finding.status]
        says, cure = (Text(redact(part)) for part in (finding.says, finding.cure))
        made.add_row(Text(sign, colour), finding.check, says, cure)
    return made
