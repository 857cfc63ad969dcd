"""Mapping files as the routes of migrations meet them: read at the door, so that a caller is told of every
error now, and not of a job that failed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from api.problems import ProblemError, invalid_field, invalid_place
from eventsourcing import NotFoundError, Settings
from resources.connections import mapping_file


async def require_mapping(settings: Settings, name: str) -> None:
    """Raise a 422 problem unless a mapping has this name and is well-formed: with an entry of `errors` for
    each of its flaws. Whether it fits its tables the job finds out, which connects to them."""
    try:
        path = await asyncio.to_thread(mapping_file, settings, name)
    except NotFoundError:
        raise invalid_field("mapping", "is not the name of a configured mapping") from None
    problem = await asyncio.to_thread(_problem_of, path)
    if problem is not None:
        raise problem


def _problem_of(path: Path) -> ProblemError | None:
    from pipelines.migration import MappingError, load_mapping  # loads Polars, which no other route needs

    try:
        load_mapping(path)
    except MappingError as error:
        entries = [{"detail": str(flaw), "line": flaw.line, "path": flaw.field} for flaw in error.flaws]
        detail = entries[0]["detail"] if error.count == 1 else f"is wrong in {error.count} places"
        return invalid_place("mapping", str(detail), entries)
    return None
