"""Flaws: what is wrong with a mapping, collected so that one look at it tells everything.

A check adds what it finds and goes on with what is sound; whoever needs the whole to be right then refuses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from pipelines.migration.errors import MappingError
from pipelines.migration.yamlfile import LocatedYaml

_LISTED = 12


class Flaws:
    """The flaws found so far in one document; those that its YAML has stand in it from the start."""

    def __init__(self, document: LocatedYaml) -> None:
        self._document = document
        self._found = dict.fromkeys(document.flaws)

    def add(self, path: Sequence[str | int], reason: str) -> None:
        """Note what is wrong at a path: its line is that of the deepest part that stands in the file."""
        self._found[self._document.flaw(path, reason)] = None

    def refuse(self) -> None:
        """Raise MappingError with every flaw, by line, when there is one."""
        if self._found:
            raise MappingError(sorted(self._found, key=lambda flaw: flaw.line))


def near(name: str, known: Iterable[str]) -> str | None:
    """The known name that was meant, as it seems."""
    names = {each.lower(): each for each in sorted(known)}
    found = get_close_matches(name.lower(), names, n=1)
    return names[found[0]] if found else None


def instead(name: str, known: Iterable[str]) -> str:
    """What would be right in place of a name: the one that is near, else those that there are."""
    names = sorted({*known})
    meant = near(name, names)
    if meant is not None:
        return f"; did you mean {meant!r}?"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"; known are {', '.join(names[:_LISTED])}{more}" if names else ""
