"""YAML read with the line of every key, so that an error can name the place it means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pipelines.migration.errors import MappingError

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class LocatedYaml:
    """A document and the 1-based line of each path in it."""

    file: str
    data: Any
    lines: dict[Path, int]

    def error(self, path: Sequence[str | int], reason: str) -> MappingError:
        """An error at the deepest part of the path that stands in the file."""
        known: Path = ()
        for part in path:
            if (*known, part) in self.lines:
                known = (*known, part)
        return MappingError(reason, file=self.file, line=self.lines.get(known, 0), field=dotted(path))


def dotted(path: Sequence[str | int]) -> str:
    """`entities.users.fields.expire.transform[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def parse_yaml(text: str, *, file: str) -> LocatedYaml:
    """Parse one document. Raises MappingError for bad syntax, a repeated key or a key that is no text."""
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            lines: dict[Path, int] = {}
            if node is not None:
                _walk(node, (), lines, file)
            data = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = error.problem or error.context or "cannot be parsed"
        raise MappingError(f"not YAML: {reason}", file=file, line=mark.line + 1 if mark else 0) from None
    except yaml.YAMLError:
        raise MappingError("not YAML", file=file) from None
    return LocatedYaml(file, data, lines)


def _walk(node: yaml.Node, path: Path, lines: dict[Path, int], file: str) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for index, inner in enumerate(node.value):
            _walk(inner, (*path, index), lines, file)
    elif isinstance(node, yaml.MappingNode):
        for key, inner in node.value:
            here = (*path, str(key.value))
            if here in lines:
                line = key.start_mark.line + 1
                raise MappingError(f"the key {key.value!r} stands twice", file=file, line=line)
            lines[here] = key.start_mark.line + 1
            _walk(inner, here, lines, file)
