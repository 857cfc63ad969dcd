"""What the command line's screens share: one console, and tables of plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

console = Console()


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table; a column of numbers stands to the right."""
    made = Table(title=title, title_justify="left", header_style="bold", title_style="bold cyan")
    for place, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[place], int | float) for row in rows)
        made.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(_cell, row))
    return made


def pairs(title: str, values: Mapping[str, Any]) -> Table:
    """A table of names and values."""
    made = Table(title=title, title_justify="left", show_header=False, title_style="bold cyan")
    made.add_column(style="dim")
    made.add_column(overflow="fold")
    for name, value in values.items():
        made.add_row(name, _cell(value))
    return made


def _cell(value: Any) -> str | Text:
    """What stands in a table: a text as it is, whatever brackets it holds."""
    if isinstance(value, Text):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.2f}"
    return "" if value is None else escape(str(value))
