"""YAML read with the line of every key, so that an error can name the place it means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from pipelines.migration.errors import Flaw, MappingError

Path = tuple[str | int, ...]

MOST_KEYS = 100_000
"""How many keys and list items a document may have: few lines of aliases of aliases make any number."""


@dataclass(frozen=True)
class LocatedYaml:
    """A document, the 1-based line of each path in it, and the keys that stand twice."""

    file: str
    data: Any
    lines: dict[Path, int]
    flaws: list[Flaw] = field(default_factory=list)

    def flaw(self, path: Sequence[str | int], reason: str) -> Flaw:
        """A flaw at the deepest part of the path that stands in the file."""
        known: Path = ()
        for part in path:
            if (*known, part) in self.lines:
                known = (*known, part)
        return Flaw(reason, self.file, self.lines.get(known, 0), dotted(path))


def dotted(path: Sequence[str | int]) -> str:
    """`entities.users.fields.expire.transform[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def parse_yaml(text: str, *, file: str) -> LocatedYaml:
    """Parse one document. Raises MappingError for bad syntax; of a repeated key the last one counts."""
    found = LocatedYaml(file, None, {})
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                _walk(node, (), found)
            data = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = error.problem or error.context or "cannot be parsed"
        raise MappingError([Flaw(f"not YAML: {reason}", file, mark.line + 1 if mark else 0)]) from None
    except yaml.YAMLError:
        raise MappingError([Flaw("not YAML", file)]) from None
    except RecursionError:  # a block that holds itself by an alias, too
        raise MappingError([Flaw("is nested too deeply", file)]) from None
    return replace(found, data=data)


def _walk(node: yaml.Node, path: Path, found: LocatedYaml) -> None:
    found.lines.setdefault(path, node.start_mark.line + 1)
    if len(found.lines) > MOST_KEYS:
        raise MappingError([Flaw(f"has more than {MOST_KEYS:,} keys, its aliases written out", found.file)])
    if isinstance(node, yaml.SequenceNode):
        for index, inner in enumerate(node.value):
            _walk(inner, (*path, index), found)
    elif isinstance(node, yaml.MappingNode):
        for key, inner in node.value:
            here, line = (*path, str(key.value)), key.start_mark.line + 1
            if here in found.lines:
                found.flaws.append(Flaw("stands twice", found.file, line, dotted(here)))
                for known in [each for each in found.lines if each[: len(here)] == here]:
                    del found.lines[known]  # the last one counts, with all that is in it
            found.lines[here] = line
            _walk(inner, here, found)
