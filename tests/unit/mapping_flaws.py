"""A mapping held against tables, and every line that is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from pipelines.migration import MappingError, parse_mapping
from pipelines.migration.compile import compile_plan
from pipelines.migration.schema import Table


def flaws_of(text: str, source: Mapping[str, Table], target: Mapping[str, Table]) -> list[str]:
    """The lines that are told of a mapping; none when it compiles."""
    try:
        compile_plan(parse_mapping(text), {**source}, {**target}, datetime.now(UTC))
    except MappingError as error:
        return [str(flaw) for flaw in error.flaws]
    return []
