"""Read a mapping file and judge its own form: every flaw at once, each with its line and its field."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from eventsourcing.events import EventType, TypedEvent, registered_events
from pipelines.migration.errors import Flaw, MappingError
from pipelines.migration.flaws import Flaws, instead, near
from pipelines.migration.mapping import (
    ChildMapping,
    Chunking,
    EntityMapping,
    FieldMapping,
    Mapping,
    Thresholds,
)
from pipelines.migration.transforms import needed_params
from pipelines.migration.yamlfile import LocatedYaml, parse_yaml

Place = tuple[str | int, ...]

_OWN_WORDS = {
    "missing": "is missing",
    "model_type": "must be a block of keys",
    "dict_type": "must be a block of keys",
    "list_type": "must be a list",
    "string_type": "must be a text",
}
"""pydantic's error type -> what we say, where its own message speaks of Python."""


def load_mapping(path: Path) -> Mapping:
    """Read and check a mapping file. Raises MappingError with every flaw."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise MappingError([Flaw(f"cannot be read: {error.strerror}", str(path))]) from None
    except UnicodeDecodeError:
        raise MappingError([Flaw("is not UTF-8 text", str(path))]) from None
    return parse_mapping(text, file=path.name)


def parse_mapping(text: str, *, file: str = "mapping") -> Mapping:
    """Check a mapping given as text. Raises MappingError with every flaw."""
    document = parse_yaml(text, file=file)
    if not isinstance(document.data, dict):
        raise MappingError([Flaw("must be a YAML mapping with the key 'entities'", file, 1)])
    flaws = Flaws(document)
    mapping = _sound_part(document, flaws)
    if mapping is not None:
        for name in mapping.entities:
            _check_entity(mapping, document.data, name, flaws)
        _check_cycles(mapping, flaws)
    flaws.refuse()
    assert mapping is not None  # else there was a flaw
    mapping._document = document
    mapping._sha256 = hashlib.sha256(text.encode()).hexdigest()
    return mapping


def _sound_part(document: LocatedYaml, flaws: Flaws) -> Mapping | None:
    """The mapping without its malformed parts, so that the sense of the others is judged as well.

    A part is a field, a child, a key of an entity or of the whole, or, when it lacks something, the whole
    entity. None when too little is left.
    """
    data = document.data
    while True:
        try:
            return Mapping.model_validate(data)
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False)
        paths = [(_path_in(document, item["loc"]), item) for item in found]
        if data is document.data:
            _tell(paths, flaws)
        malformed = {_part(path[:-1] if item["type"] == "missing" else path) for path, item in paths}
        smaller = {"version": 1, **data}
        for part in malformed:
            smaller = _without(smaller, part)
        if smaller == data:
            return None
        data = smaller


def _tell(found: list[tuple[Place, Any]], flaws: Flaws) -> None:
    unknown = [path for path, item in found if item["type"] == "extra_forbidden"]
    for path, item in found:
        misspelt = [other for other in unknown if other[:-1] == path[:-1]]
        if item["type"] == "missing" and near(str(path[-1]), [str(other[-1]) for other in misspelt]):
            continue  # one slip is one flaw
        flaws.add(path, _reason(item, path))


def _part(path: Place) -> Place:
    if path[:1] != ("entities",):
        return path[:1]
    return path[:4] if path[2:3] in (("fields",), ("children",)) else path[:3]


def _without(data: Any, path: Place) -> Any:
    """A copy of the document that lacks one part."""
    if not path or not isinstance(data, dict) or path[0] not in data:
        return data
    if len(path) == 1:
        return {key: value for key, value in data.items() if key != path[0]}
    return {**data, path[0]: _without(data[path[0]], path[1:])}


def _path_in(document: LocatedYaml, location: Place) -> Place:
    """Pydantic's location without the names of its own union branches."""
    path: Place = ()
    for index, part in enumerate(location):
        is_last = index == len(location) - 1
        if (*path, part) in document.lines or (is_last and isinstance(part, str) and "-" not in part):
            path = (*path, part)
    return path


def _reason(error: Any, path: Place) -> str:
    if error["type"] == "extra_forbidden":
        return "is not a key that a mapping knows here" + instead(str(path[-1]), _keys_beside(path))
    message = _OWN_WORDS.get(error["type"], str(error["msg"]).removeprefix("Value error, "))
    return message[0].lower() + message[1:]


def _keys_beside(path: Place) -> Iterator[str]:
    """The keys that may stand where this one does."""
    form: type[BaseModel]
    match path:
        case ("entities", _, "fields", _, _):
            form = FieldMapping
        case ("entities", _, "children", _, _):
            form = ChildMapping
        case ("entities", _, _):
            form = EntityMapping
        case ("thresholds", _):
            form = Thresholds
        case ("chunk", _):
            form = Chunking
        case _:
            form = Mapping
    return (field.alias or name for name, field in form.model_fields.items())


def _check_entity(mapping: Mapping, written: dict[str, Any], name: str, flaws: Flaws) -> None:
    """Judge what a well-formed entity says; names of malformed parts, which are told already, are known."""
    entity, here = mapping.entities[name], ("entities", name)
    for parent in sorted(entity.parents - {*written["entities"]}):
        by_field = [column for column, field in entity.fields.items() if field.ref == parent]
        place = ("fields", by_field[0], "ref") if by_field else ("depends_on",)
        reason = f"there is no entity {parent!r}" + instead(parent, {*written["entities"]} - {name})
        flaws.add((*here, *place), reason)
    for natural in entity.natural_key:
        if natural not in written["entities"][name]["fields"]:
            reason = f"{natural!r} is not one of the fields" + instead(natural, entity.fields)
            flaws.add((*here, "natural_key"), reason)
        elif natural in entity.fields and entity.fields[natural].secret:
            flaws.add((*here, "natural_key"), "names a secret field, and it stands in every event")
    if entity.emit is not None and not _names_a_record(entity.event):
        reason = f"{entity.emit!r} is not a registered event of a record"
        flaws.add((*here, "emit"), reason + instead(entity.emit, _events_of_records()))
    for column, field in entity.fields.items():
        referred = mapping.entities.get(field.ref or "")
        _check_field((*here, "fields", column), field, len(referred.key) if referred else None, flaws)
        for step, _ in field.transform:
            _check_params(written, (*here, "fields", column, "transform"), step, flaws)
    for child, spec in entity.children.items():
        _check_params(written, (*here, "children", child, "transform"), spec.transform, flaws)
        _check_columns((*here, "children", child), spec, flaws)


def _names_a_record(event: type[TypedEvent] | None) -> bool:
    return event is not None and {"username", "source_data", "target_data"} <= set(
        event.payload_model.model_fields
    )


def _events_of_records() -> Iterator[str]:
    """How a mapping names them: ours by their short names, those of teams by their types."""
    names = {member.value: member.name for member in EventType}
    declared = (each.declared_type for each in registered_events() if _names_a_record(each))
    return (names.get(each, each) for each in declared)


def _check_params(written: dict[str, Any], place: Place, function: str, flaws: Flaws) -> None:
    params = written.get("params", {})
    for name in needed_params(function):
        if isinstance(params, dict) and params.get(name) is None:
            flaws.add(place, f"{function!r} needs the parameter {name!r}, which has no default")


def _check_columns(place: Place, child: ChildMapping, flaws: Flaws) -> None:
    """Rules and secrets of a child speak of the columns it is made of."""
    for key, columns in (("rules", child.rules), ("secret_from", child.secret_sources)):
        for column in columns:
            if column not in child.sources:
                reason = "is not a column under 'from'" + instead(column, child.sources)
                flaws.add((*place, key, column), reason)


def _check_field(path: Place, field: FieldMapping, referred: int | None, flaws: Flaws) -> None:
    """`referred`: how many columns the key has that it refers to, where that is known."""
    if field.ref and (field.transform or len(field.sources) != (referred or len(field.sources))):
        several = f"{referred} source columns, in the order of the key,"
        columns = "one source column" if referred in (1, None) else several
        flaws.add(path, f"a reference has {columns} and no transform")
    if field.ref_column and not field.ref:
        flaws.add((*path, "ref_column"), "says which column of a key is meant, and there is no 'ref'")
    first = field.transform[0][0] if field.transform else None
    if not field.ref and not field.sources and first != "const":
        flaws.add(path, "has no 'from'; a fixed value is written as transform: [{const: …}]")


def _check_cycles(mapping: Mapping, flaws: Flaws) -> None:
    for name in mapping.entities:
        above, waiting = set[str](), [name]
        while waiting:
            entity = mapping.entities.get(waiting.pop())
            waiting += sorted((entity.parents if entity else set()) - above)
            above |= {*waiting}
        if name in above:
            flaws.add(("entities", name), "depends on itself")
