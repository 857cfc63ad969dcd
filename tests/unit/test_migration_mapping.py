"""The mapping file: every mistake is named with its line and its field, in one line."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipelines.migration import MappingError, load_mapping, mapping_schema, parse_mapping
from pipelines.migration.compile import compile_plan
from pipelines.migration.legacy_panel import mapping_path
from pipelines.migration.schema import Column, Table, Unique

GOOD = """\
version: 1
entities:
  people:
    from: old_people
    to: people
    key: id
    natural_key: name
    emit: USER_MIGRATED
    fields:
      name: {from: name, transform: [lower], rules: [required]}
      born: {from: born, transform: [{datetime: {from: naive_utc, to: unix_s}}]}
    ignore: [shoe_size]
"""
SOURCE = {
    "old_people": Table(
        "old_people",
        {
            "id": Column("id", "integer", "integer"),
            "name": Column("name", "text", "varchar"),
            "born": Column("born", "datetime", "datetime"),
            "shoe_size": Column("shoe_size", "integer", "integer"),
        },
        "id",
    )
}
TARGET = {
    "people": Table(
        "people",
        {
            "id": Column("id", "integer", "integer"),
            "name": Column("name", "text", "varchar"),
            "born": Column("born", "integer", "bigint"),
        },
        "id",
        (Unique(("id",)),),
    )
}


def test_the_demo_mapping_is_well_formed() -> None:
    mapping = load_mapping(mapping_path())
    assert mapping.in_order() == ["admins", "users"]
    assert len(mapping.sha256) == 64


def test_the_good_mapping_compiles() -> None:
    plan = compile_plan(parse_mapping(GOOD), SOURCE, TARGET, datetime.now(UTC))
    assert plan.entities["people"].columns == ("born", "id", "name")


def test_the_published_json_schema_is_that_of_the_code() -> None:
    published = Path(__file__).parents[2] / "docs" / "mapping.schema.json"
    assert json.loads(published.read_text()) == mapping_schema()


def test_a_function_that_needs_a_parameter_has_no_default_for_it() -> None:
    text = mapping_path().read_text().replace("  auth_algorithm: xxh128", "  other: 1")
    with pytest.raises(MappingError, match=r"proxies.transform: 'derived_credentials' needs the parameter"):
        parse_mapping(text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[required]", "[required]", "'skip' needs a unique natural key"),
        ("to: people\n", "to: people\n    on_conflict: rename\n", "'rename' needs a unique natural key"),
    ],
)
def test_a_policy_that_matches_needs_a_natural_key_that_is_unique(old: str, new: str, message: str) -> None:
    text = GOOD.replace("version: 1", "version: 1\non_conflict: skip").replace(old, new, 1)
    with pytest.raises(MappingError, match=message):
        compile_plan(parse_mapping(text), SOURCE, TARGET, datetime.now(UTC))


def test_a_target_table_is_written_by_one_entity() -> None:
    text = GOOD + GOOD.partition("entities:\n")[2].replace("people:\n", "others:\n", 1)
    with pytest.raises(MappingError, match=r"others\.to: the target table 'people' is written twice"):
        compile_plan(parse_mapping(text), SOURCE, TARGET, datetime.now(UTC))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    to: people\n", "", "mapping:3: entities.people.to: is missing"),
        ("key: id", "keys: id", "is not a key that a mapping knows here"),
        ("version: 1", "version: 2", "mapping:1: version: input should be 1"),
        (
            "[lower]",
            "[lowr]",
            "mapping:10: entities.people.fields.name.transform[0]: unknown transform 'lowr'",
        ),
        (
            "[required]",
            "[requird]",
            "mapping:10: entities.people.fields.name.rules[0]: unknown rule 'requird'",
        ),
        (
            "to: unix_s",
            "to: unix",
            "mapping:11: entities.people.fields.born.transform[0]: transform 'datetime': to:",
        ),
        ("[required]", "[{max_length: 0}]", "rule 'max_length': input should be greater than or equal to 1"),
        ("[required]", "[{pattern: '('}]", "is not a regular expression"),
        ("[required]", "[{required: 3}]", "the rule 'required' takes no argument"),
        (
            "natural_key: name",
            "natural_key: nick",
            "mapping:7: entities.people.natural_key: 'nick' is not one",
        ),
        (
            "emit: USER_MIGRATED",
            "emit: USER_LOST",
            "mapping:8: entities.people.emit: 'USER_LOST' is not a reg",
        ),
        ("emit: USER_MIGRATED", "emit: data.extracted", "is not a registered event of a record"),
        (
            "emit: USER_MIGRATED",
            "depends_on: [cats]",
            "mapping:8: entities.people.depends_on: there is no entity",
        ),
        ("emit: USER_MIGRATED", "depends_on: [people]", "mapping:3: entities.people: depends on itself"),
        (
            "version: 1",
            "version: 1\non_conflict: upsert",
            "mapping:2: on_conflict: input should be 'fail', 'skip', 'update' or 'rename'",
        ),
        ("rules: [required]", "secret: true", "names a secret field"),
        ("{from: name, transform: [lower]", "{transform: [lower]", "has no 'from'"),
        ("    to: people\n", "    to: people\n    to: others\n", "mapping:6: the key 'to' stands twice"),
        ("version: 1", "version: [", "not YAML"),
        ("emit: USER_MIGRATED", "stream: '{kind}'", "mapping:8: entities.people.stream: must name {kind}"),
        (
            "emit: USER_MIGRATED",
            "stream: '{kind}-{id}-{key}'",
            "may name {kind}, {key}, {entity} and",
        ),
    ],
)
def test_a_malformed_mapping_names_line_and_field(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(MappingError) as caught:
        parse_mapping(GOOD.replace(old, new, 1))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("from: old_people", "from: olds", "mapping:4: entities.people.from: the source has no table 'olds'"),
        ("to: people", "to: persons", "mapping:5: entities.people.to: the target has no table 'persons'"),
        ("key: id", "key: uid", "mapping:6: entities.people.key: the table 'old_people' has no column 'uid'"),
        ("name: {from: name", "name: {from: nam", "mapping:10: entities.people.fields.name.from: the table"),
        (
            "born: {from",
            "birth: {from",
            "mapping:11: entities.people.fields.birth: the table 'people' has no",
        ),
        ("[shoe_size]", "[]", "mapping:12: entities.people.ignore: the source column 'shoe_size'"),
        ("[shoe_size]", "[shoe_size, hat]", "has no column 'hat'"),
        ("[shoe_size]", "[shoe_size, name]", "the column 'name' is mapped and ignored"),
        ("emit: USER_MIGRATED", "where: shoe_sze > 3", "mapping:8: entities.people.where: the table"),
        ("emit: USER_MIGRATED", "where: '; drop table'", "is not an SQL condition"),
        ("emit: USER_MIGRATED", "where: shoe_size + 1", "is not a condition"),
    ],
)
def test_a_mapping_that_does_not_fit_the_tables_names_line_and_field(
    old: str, new: str, message: str
) -> None:
    assert old in GOOD
    with pytest.raises(MappingError) as caught:
        compile_plan(parse_mapping(GOOD.replace(old, new, 1)), SOURCE, TARGET, datetime.now(UTC))
    assert message in str(caught.value)


def test_a_key_made_of_a_secret_is_refused() -> None:
    text = GOOD.replace("born: {from: born,", "born: {from: id, secret: true,")
    text = text.replace("[shoe_size]", "[shoe_size, born]")
    with pytest.raises(MappingError, match="made of a secret column"):
        compile_plan(parse_mapping(text), SOURCE, TARGET, datetime.now(UTC))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MappingError, match="cannot be read"):
        load_mapping(tmp_path / "none.yaml")
