"""The mapping file: which tables and columns go where, by which transforms and under which rules.

A mapping is checked in two steps: its own form in `mappingfile.py`, and against the reflected tables in
`fitting.py`. Connections never stand in it: the caller gives them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    WithJsonSchema,
)

from eventsourcing.events import EventType, TypedEvent, event_class
from pipelines.migration import rules, transforms
from pipelines.migration.flaws import Flaws
from pipelines.migration.rules import check_rule
from pipelines.migration.transforms import check_child_transform, check_transform
from pipelines.migration.yamlfile import LocatedYaml


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


def _together(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError("names no column")
    if len({*names}) < len(names):
        raise ValueError("names a column twice")
    return names


def _one_or_several(item: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [item, {"type": "array", "items": item}]})


_NAME = {"type": "string"}
Names = Annotated[list[str], BeforeValidator(_listed), _one_or_several(_NAME)]
Key = Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(_together), _one_or_several(_NAME)]
"""One column, or several that are a key together."""
Transform = Annotated[tuple[str, Any], BeforeValidator(_transform)]
Rule = Annotated[tuple[str, Any], BeforeValidator(_rule)]
Transforms = Annotated[list[Transform], BeforeValidator(_listed), _one_or_several(transforms.step_schema())]
Rules = Annotated[list[Rule], BeforeValidator(_listed), _one_or_several(rules.step_schema())]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, hide_input_in_errors=True)


class FieldMapping(_Part):
    """One target column: where it comes from, how it is changed, what it must satisfy.

    `ref` names the entity whose key the source columns hold, in its order: the value becomes that record's
    new key, or the column `ref_column` of it (else the one of the field's name) where it has several.
    `secret` keeps the value, and the source columns it is made of, out of every event.
    """

    sources: Names = Field(default=[], alias="from")
    transform: Transforms = []
    rules: Rules = []
    ref: str | None = None
    ref_column: str | None = None
    on_missing: Literal["quarantine", "null"] = "quarantine"
    secret: bool = False


class ChildMapping(_Part):
    """Rows of another target table that are made from the record, and live and die with it.

    `parent` is the target column that holds the record's new key, or those that do, in its order. `rules`
    check the source columns; a record that breaks one is quarantined whole. When a column is `secret`, so
    are the source columns it is made of: all of them, unless `secret_from` names those that are.
    """

    to: str
    parent: Key
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

    `key` is the column of the source, or those together, that tell its rows apart; `natural_key` those of the
    target by which people know a record, and by which one that is there already is found.
    `where` is an SQL condition over source columns; rows that do not meet it are counted as filtered.
    `ignore` lists the source columns that are left behind: each column is mapped or ignored.
    `on_conflict` stands in place of the whole mapping's. `stream` names a
    record's stream: `{kind}` is the event's aggregate type and `{key}` the record's key in the target;
    with several targets in one store it names `{target}`, the target's database, as well.
    """

    source: str = Field(alias="from")
    to: str
    key: Key
    natural_key: Key
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
    def mapped(self) -> set[str]:
        """The source columns that a field or a child is made of."""
        by_field = {source for field in self.fields.values() for source in field.sources}
        return by_field | {source for child in self.children.values() for source in child.sources}

    @property
    def secret_sources(self) -> frozenset[str]:
        """The source columns that must not be seen."""
        by_field = {source for field in self.fields.values() if field.secret for source in field.sources}
        by_child = {source for child in self.children.values() for source in child.secret_sources}
        return frozenset(by_field | by_child)

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

    def flaws(self) -> Flaws:
        """Where checks against anything else collect what is wrong, by the file's lines."""
        return Flaws(self._document)

    def policy(self, entity: str) -> Policy:
        """What becomes of this entity's records that the target holds already."""
        return self.entities[entity].on_conflict or self.on_conflict

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


def _event_type(emit: str) -> str:
    return EventType[emit].value if emit in EventType.__members__ else emit
