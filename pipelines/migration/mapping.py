"""The mapping file: which tables and columns go where, by which transforms and under which rules.

A mapping is checked in two steps: its own form here, with the line of every error, and against the
reflected tables in `plan.py`. Connections never stand in it: the caller gives them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
)

from eventsourcing.events import EventType, TypedEvent, event_class
from pipelines.migration import rules, transforms
from pipelines.migration.errors import MappingError
from pipelines.migration.rules import check_rule
from pipelines.migration.transforms import check_child_transform, check_transform, needed_params
from pipelines.migration.yamlfile import LocatedYaml, parse_yaml


def split_step(step: Any) -> tuple[str, Any]:
    """The name and the argument of a transform or rule: `lower`, or `{max_length: 34}`."""
    if isinstance(step, str):
        return step, None
    if not isinstance(step, dict) or len(step) != 1:
        raise ValueError("write one name, or one name with its argument: {name: argument}")
    ((name, argument),) = step.items()
    return str(name), argument


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


def _transform(step: Any) -> tuple[str, Any]:
    name, argument = split_step(step)
    return name, check_transform(name, argument)


def _rule(step: Any) -> tuple[str, Any]:
    name, argument = split_step(step)
    return name, check_rule(name, argument)


def _child_transform(name: str) -> str:
    return check_child_transform(name)


Policy = Literal["fail", "skip", "update", "rename"]
"""What becomes of a record that the target holds already, by its natural key.

`fail`: the target's tables must be empty. `skip`: it is left as it is. `update`: its mapped columns and
its children become what the source says. `rename`: the record is inserted under the first free name.
"""


def _template(text: str) -> str:
    try:
        text.format(kind="", key="", entity="", target="")
    except (LookupError, ValueError):
        raise ValueError("may name {kind}, {key}, {entity} and {target}, and nothing else") from None
    if text.count("{key}") != 1 or "{kind}" not in text or not text.isprintable() or len(text) > 100:
        raise ValueError("must name {kind} and, once, {key}, in at most 100 printable characters")
    return text


Names = Annotated[list[str], BeforeValidator(_listed)]
Transform = Annotated[tuple[str, Any], BeforeValidator(_transform), WithJsonSchema(transforms.step_schema())]
Rule = Annotated[tuple[str, Any], BeforeValidator(_rule), WithJsonSchema(rules.step_schema())]
Transforms = Annotated[list[Transform], BeforeValidator(_listed)]
Rules = Annotated[list[Rule], BeforeValidator(_listed)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, hide_input_in_errors=True)


class FieldMapping(_Part):
    """One target column: where it comes from, how it is changed, what it must satisfy.

    `ref` names the entity whose key the source column holds: the value becomes that record's new key.
    `secret` keeps the value, and the source columns it is made of, out of every event.
    """

    sources: Names = Field(default=[], alias="from")
    transform: Transforms = []
    rules: Rules = []
    ref: str | None = None
    on_missing: Literal["quarantine", "null"] = "quarantine"
    secret: bool = False


class ChildMapping(_Part):
    """Rows of another target table that are made from the record, and live and die with it.

    `parent` is the target column that holds the record's new key. `rules` check the source columns;
    a record that breaks one is quarantined whole. When a column is `secret`, so are the source columns
    it is made of: all of them, unless `secret_from` names those that are.
    """

    to: str
    parent: str
    sources: Names = Field(alias="from", min_length=1)
    transform: Annotated[str, AfterValidator(_child_transform)]
    rules: dict[str, Rules] = {}
    secret: list[str] = []
    secret_from: list[str] | None = None

    @property
    def secret_sources(self) -> list[str]:
        """The source columns that must not be seen."""
        if self.secret_from is not None:
            return self.secret_from
        return self.sources if self.secret else []


class EntityMapping(_Part):
    """One source table and the target table that its rows go to.

    `where` is an SQL condition over source columns; rows that do not meet it are counted as filtered.
    `ignore` lists the source columns that are left behind: each column is mapped or ignored.
    `on_conflict` stands in place of the whole mapping's. `stream` names a
    record's stream: `{kind}` is the event's aggregate type and `{key}` the record's key in the target;
    with several targets in one store it names `{target}`, the target's database, as well.
    """

    source: str = Field(alias="from")
    to: str
    key: str
    natural_key: str
    depends_on: list[str] = []
    where: str | None = None
    emit: str | None = None
    stream: Annotated[str, AfterValidator(_template)] = "{kind}-{key}"
    on_conflict: Policy | None = None
    fields: dict[str, FieldMapping] = Field(min_length=1)
    children: dict[str, ChildMapping] = {}
    ignore: list[str] = []

    @property
    def event(self) -> type[TypedEvent] | None:
        """The class of the event that each record emits, or None."""
        return None if self.emit is None else event_class(_event_type(self.emit))

    @property
    def parents(self) -> set[str]:
        """The entities that must be loaded first."""
        return {*self.depends_on, *(field.ref for field in self.fields.values() if field.ref)}


class Thresholds(_Part):
    """What share of an entity's records may be quarantined, 0 to 1, before the run fails."""

    max_quarantine_ratio: float = Field(default=0.01, ge=0, le=1)


class Chunking(_Part):
    """How many records are read, staged and committed together."""

    rows: int = Field(default=10_000, ge=1, le=1_000_000)


class Mapping(_Part):
    """A whole mapping file."""

    version: Literal[1]
    params: dict[str, Any] = {}
    thresholds: Thresholds = Thresholds()
    chunk: Chunking = Chunking()
    on_conflict: Policy = "fail"
    entities: dict[str, EntityMapping] = Field(min_length=1)

    _document: LocatedYaml = PrivateAttr()
    _sha256: str = PrivateAttr(default="")

    @property
    def sha256(self) -> str:
        """The hash of the file's text: a run goes on only under the mapping it began with."""
        return self._sha256

    def error(self, path: tuple[str | int, ...], reason: str) -> MappingError:
        """An error that names the file, the line and the field of a path."""
        return self._document.error(path, reason)

    def in_order(self) -> list[str]:
        """The entities' names, parents first, else as they stand in the file."""
        order: list[str] = []
        while len(order) < len(self.entities):
            ready = [n for n, e in self.entities.items() if n not in order and e.parents <= {*order}]
            order += ready[:1]
        return order


def mapping_schema() -> dict[str, Any]:
    """The JSON Schema of a mapping file, for editors."""
    schema = Mapping.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Migration mapping"}


def load_mapping(path: Path) -> Mapping:
    """Read and check a mapping file. Raises MappingError naming the line and the field."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise MappingError(f"cannot be read: {error.strerror}", file=str(path)) from None
    except UnicodeDecodeError:
        raise MappingError("is not UTF-8 text", file=str(path)) from None
    return parse_mapping(text, file=path.name)


def parse_mapping(text: str, *, file: str = "mapping") -> Mapping:
    """Check a mapping given as text. Raises MappingError naming the line and the field."""
    document = parse_yaml(text, file=file)
    if not isinstance(document.data, dict):
        raise MappingError("must be a YAML mapping with the key 'entities'", file=file, line=1)
    try:
        mapping = Mapping.model_validate(document.data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        first = min(found, key=lambda item: item["type"] == "missing")  # a key misspelt is missing too
        raise document.error(_path_in(document, first["loc"]), _reason(first)) from None
    mapping._document = document
    mapping._sha256 = hashlib.sha256(text.encode()).hexdigest()
    for name, entity in mapping.entities.items():
        _check_entity(mapping, name, entity)
    _refuse_cycles(mapping)
    return mapping


def _path_in(document: LocatedYaml, location: tuple[str | int, ...]) -> list[str | int]:
    """Pydantic's location without the names of its own union branches."""
    path: list[str | int] = []
    for index, part in enumerate(location):
        is_last = index == len(location) - 1
        if (*path, part) in document.lines or (is_last and isinstance(part, str) and "-" not in part):
            path.append(part)
    return path


def _reason(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "is not a key that a mapping knows here"
    if error["type"] == "missing":
        return "is missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _event_type(emit: str) -> str:
    return EventType[emit].value if emit in EventType.__members__ else emit


def _check_entity(mapping: Mapping, name: str, entity: EntityMapping) -> None:
    here = ("entities", name)
    for parent in entity.parents:
        if parent not in mapping.entities:
            place = ("depends_on",) if parent in entity.depends_on else ("fields",)
            raise mapping.error((*here, *place), f"there is no entity {parent!r}")
    if entity.natural_key not in entity.fields:
        raise mapping.error((*here, "natural_key"), f"{entity.natural_key!r} is not one of the fields")
    if entity.fields[entity.natural_key].secret:
        raise mapping.error((*here, "natural_key"), "names a secret field, and it stands in every event")
    if entity.emit is not None and not _names_a_record(entity.event):
        raise mapping.error((*here, "emit"), f"{entity.emit!r} is not a registered event of a record")
    for column, field in entity.fields.items():
        _check_field(mapping, (*here, "fields", column), field)
        for step, _ in field.transform:
            _check_params(mapping, (*here, "fields", column, "transform"), step)
    for child, spec in entity.children.items():
        _check_params(mapping, (*here, "children", child, "transform"), spec.transform)
        for key, columns in (("rules", spec.rules), ("secret_from", spec.secret_sources)):
            for column in columns:
                if column not in spec.sources:
                    raise mapping.error(
                        (*here, "children", child, key, column), "is not a column under 'from'"
                    )


def _names_a_record(event: type[TypedEvent] | None) -> bool:
    return event is not None and {"username", "source_data", "target_data"} <= set(
        event.payload_model.model_fields
    )


def _check_params(mapping: Mapping, place: tuple[str | int, ...], function: str) -> None:
    for name in needed_params(function):
        if mapping.params.get(name) is None:
            raise mapping.error(place, f"{function!r} needs the parameter {name!r}, which has no default")


def _check_field(mapping: Mapping, path: tuple[str | int, ...], field: FieldMapping) -> None:
    if field.ref and (field.transform or len(field.sources) != 1):
        raise mapping.error(path, "a reference has one source column and no transform")
    first = field.transform[0][0] if field.transform else None
    if not field.sources and first != "const":
        raise mapping.error(path, "has no 'from'; a fixed value is written as transform: [{const: …}]")


def _refuse_cycles(mapping: Mapping) -> None:
    loaded: set[str] = set()
    while len(loaded) < len(mapping.entities):
        ready = {n for n, e in mapping.entities.items() if n not in loaded and e.parents <= loaded}
        if not ready:
            name = next(n for n in mapping.entities if n not in loaded)
            raise mapping.error(("entities", name), "depends on itself")
        loaded |= ready
