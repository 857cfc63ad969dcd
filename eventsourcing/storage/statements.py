"""Load the named statements of a .sql file beside this module: `-- name: x` begins statement x."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources


@cache
def statements(file: str) -> dict[str, str]:
    """The statements of `sql/{file}.sql` by name, in the order of the file."""
    text = resources.files("eventsourcing.storage").joinpath("sql", f"{file}.sql").read_text("utf-8")
    parts = re.split(r"^-- name: (\w+)\s*$", text, flags=re.MULTILINE)[1:]
    return {name: body.strip() for name, body in zip(parts[::2], parts[1::2], strict=True)}
