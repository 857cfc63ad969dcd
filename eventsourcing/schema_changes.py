"""What changed between two sets of schemas, and whether it keeps the promise to those who read events.

Events are kept for ever, and others have written readers for them. Within one version of a payload only
this is compatible: a new optional field, a new type, another wording. Everything else is breaking, for
either a stored event or an existing reader does not fit any more; its cure is a new version of the
payload with an upcast from the one before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from eventsourcing.errors import BreakingChangeError
from eventsourcing.schemas import ENVELOPE, TYPE, VERSION, Schema

_WORDING = {"title", "description", "default", "examples", "deprecated", "$comment", "$schema"}
"""Keywords that say nothing about which payloads there are."""

_WALKED = {"properties", "required", "$defs", "type", "format"}
_NESTED = {"items", "additionalProperties", "contains", "propertyNames"}
_ALTERNATIVES = {"anyOf", "oneOf", "allOf", "prefixItems"}


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `field` is a dotted path from the event's fields, "" for the whole type."""

    event_type: str
    field: str
    what: str
    breaking: bool
    cure: str = ""

    def __str__(self) -> str:
        kind = "breaking" if self.breaking else "compatible"
        place = (
            f"{self.event_type}: {self.field} {self.what}" if self.field else f"{self.event_type} {self.what}"
        )
        return f"{kind}: {place}; {self.cure}" if self.cure else f"{kind}: {place}"


def changes(accepted: Mapping[str, Schema], current: Mapping[str, Schema]) -> list[Change]:
    """Every difference between the accepted documents and those of the code, by file name.

    Documents of older versions have no counterpart in the code and stay as they are.
    """
    found = list(_envelope(accepted.get(ENVELOPE), current[ENVELOPE]))
    versions = _newest_versions(accepted)
    code = {schema[TYPE]: schema for name, schema in current.items() if name != ENVELOPE}
    for name in sorted(versions.keys() | code.keys()):
        if name not in code:
            cure = "register its class again: stored events of it would read without their upcasts"
            found.append(Change(name, "", "is not registered any more", breaking=True, cure=cure))
        elif name not in versions:
            found.append(Change(name, "", "is a new type", breaking=False))
        else:
            found += _payload(versions[name], code[name])
    return found


def accept(accepted: Mapping[str, Schema], current: Mapping[str, Schema]) -> dict[str, Schema]:
    """The documents to keep once the compatible changes of the code are accepted.

    Raises BreakingChangeError with every breaking change; then nothing is to be accepted.
    """
    refuse_breaking(changes(accepted, current))
    return {**accepted, **current}


def refuse_breaking(found: list[Change]) -> None:
    """Raise BreakingChangeError when a change is breaking."""
    breaking = [str(change) for change in found if change.breaking]
    if breaking:
        raise BreakingChangeError(breaking)


def _newest_versions(schemas: Mapping[str, Schema]) -> dict[str, Schema]:
    newest: dict[str, Schema] = {}
    for name, schema in schemas.items():
        if name != ENVELOPE and schema[VERSION] >= newest.get(schema[TYPE], schema)[VERSION]:
            newest[schema[TYPE]] = schema
    return newest


def _envelope(old: Schema | None, new: Schema) -> Iterator[Change]:
    if old is None:
        yield Change("the envelope", "", "is new", breaking=False)
        return
    for field, what, breaking in _Walk(old, new).differences(old, new, ""):
        cure = "every reader relies on the envelope: it may only gain optional fields" if breaking else ""
        yield Change("the envelope", field, what, breaking=breaking, cure=cure)


def _payload(old: Schema, new: Schema) -> Iterator[Change]:
    name, version = new[TYPE], old[VERSION]
    if new[VERSION] < version:
        cure = f"declare schema_version={version} again: stored events of it would stop every reader"
        yield Change(name, "", f"is back at version {new[VERSION]}", breaking=True, cure=cure)
    elif new[VERSION] > version:
        yield Change(name, "", f"is at version {new[VERSION]}, upcast from {version}", breaking=False)
    else:
        for field, what, breaking in _Walk(old, new).differences(old, new, "data"):
            cure = f"declare schema_version={version + 1} with an @upcast({version})" if breaking else ""
            yield Change(name, field, what, breaking=breaking, cure=cure)


Difference = tuple[str, str, bool]
"""Field, what happened to it, and whether that is breaking."""


class _Walk:
    """One walk through two documents side by side; each pair of definitions is entered once."""

    def __init__(self, old: Schema, new: Schema) -> None:
        self._old, self._new = old, new
        self._entered: set[tuple[str, str]] = set()

    def differences(self, old: Any, new: Any, at: str) -> Iterator[Difference]:
        references = (_reference(old), _reference(new))
        if references in self._entered:
            return
        if any(references):
            self._entered.add(references)
        old, new = _resolved(self._old, old), _resolved(self._new, new)
        if (before := _kind(self._old, old)) != (after := _kind(self._new, new)):
            yield at, f"changed its type from {before} to {after}", True
            return
        yield from self._fields(old, new, at)
        for keyword in sorted((old.keys() | new.keys()) - _WALKED):
            yield from self._keyword(keyword, old.get(keyword), new.get(keyword), at)

    def _fields(self, old: Schema, new: Schema, at: str) -> Iterator[Difference]:
        before, after = old.get("properties", {}), new.get("properties", {})
        was_required, is_required = set(old.get("required", ())), set(new.get("required", ()))
        for name in sorted(before.keys() | after.keys()):
            field = f"{at}.{name}".lstrip(".")
            if name not in after:
                yield field, "was removed", True
            elif name not in before:
                if name in is_required:
                    yield field, "is new and required", True
                elif old.get("additionalProperties") is False:
                    yield field, "is new where no further field was allowed", True
                else:
                    yield field, "is new and optional", False
            else:
                if (name in is_required) != (name in was_required):
                    yield field, f"was made {'required' if name in is_required else 'optional'}", True
                yield from self.differences(before[name], after[name], field)

    def _keyword(self, keyword: str, before: Any, after: Any, at: str) -> Iterator[Difference]:
        if keyword in _NESTED and isinstance(before, dict) and isinstance(after, dict):
            yield from self.differences(before, after, f"{at}[]")
        elif keyword in _ALTERNATIVES and before and after and len(before) == len(after):
            for one, other in zip(before, after, strict=True):
                yield from self.differences(one, other, at)
        elif before != after:
            wording = keyword in _WORDING
            yield (
                at,
                f"changed its {keyword}" + ("" if wording else f" from {before} to {after}"),
                not wording,
            )


def _reference(schema: Any) -> str:
    return str(schema.get("$ref", "")) if isinstance(schema, dict) else ""


def _resolved(document: Schema, given: Any) -> Schema:
    """The schema with its reference into the document replaced by what stands there."""
    schema: Schema = given if isinstance(given, dict) else {}
    while reference := _reference(schema):
        beside = {keyword: value for keyword, value in schema.items() if keyword != "$ref"}
        schema = {**document["$defs"][reference.removeprefix("#/$defs/")], **beside}
    return schema


def _kind(document: Schema, schema: Any) -> str:
    """The JSON type in words: `string (date-time)`, `integer or null`."""
    schema = _resolved(document, schema)
    if "type" in schema:
        kind = schema["type"]
        words = " or ".join(kind) if isinstance(kind, list) else str(kind)
        return f"{words} ({schema['format']})" if "format" in schema else words
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            return " or ".join(_kind(document, one) for one in schema[keyword])
    return "anything"
