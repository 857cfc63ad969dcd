"""The mapping file: every mistake is named with its line and its field, in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipelines.migration import MappingError, load_mapping, mapping_schema, parse_mapping
from pipelines.migration.compile import compile_plan
from pipelines.migration.legacy_panel import mapping_path
from pipelines.migration.schema import Column, Table, Unique
from tests.unit.mapping_flaws import flaws_of

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
        ("id",),
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
        ("id",),
        (Unique(("id",)),),
    )
}


def flaws(text: str, *, source: dict[str, Table] = SOURCE, target: dict[str, Table] = TARGET) -> list[str]:
    return flaws_of(text, source, target)


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
    ("own", "policy"), [("to: people\n", "skip"), ("to: people\n    on_conflict: rename\n", "rename")]
)
def test_a_policy_that_matches_needs_a_natural_key_that_is_unique(own: str, policy: str) -> None:
    text = GOOD.replace("version: 1", "version: 1\non_conflict: skip").replace("to: people\n", own, 1)
    (flaw,) = flaws(text)
    assert f"'{policy}' needs a unique natural key" in flaw


def test_a_target_table_is_written_by_one_entity() -> None:
    (flaw,) = flaws(GOOD + GOOD.partition("entities:\n")[2].replace("people:\n", "others:\n", 1))
    assert "others.to: the target table 'people' is written twice" in flaw


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
        (
            "    to: people\n",
            "    to: people\n    to: others\n",
            "mapping:6: entities.people.to: stands twice",
        ),
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
    (flaw,) = flaws(GOOD.replace(old, new, 1))
    assert message in flaw


def test_a_key_made_of_a_secret_is_refused() -> None:
    text = GOOD.replace("born: {from: born,", "born: {from: id, secret: true,")
    text = text.replace("[shoe_size]", "[shoe_size, born]")
    assert any("made of a secret column" in flaw for flaw in flaws(text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MappingError, match="cannot be read"):
        load_mapping(tmp_path / "none.yaml")


WRONG_IN_FORM = """\
version: 1
chunk: {rows: 0}
entities:
  people:
    from: old_people
    to: people
    kye: id
    natural_key: name
    emit: USER_MIGRATE
    fields:
      name: {from: name, transform: [lowr], rules: [requird]}
      born: {from: born, ref: peeple, secert: true}
      born: {from: born, transform: [{datetime: {from: naive, til: unix_s}}]}
    ignore: shoe_size
  cats:
    from: cats
    to: cats
    key: id
    natural_key: nam
    depends_on: [peple, cats]
    fields:
      name: {transform: [lower]}
      toys: 3
"""


def test_everything_that_is_wrong_in_form_is_told_at_once_by_line() -> None:
    assert flaws(WRONG_IN_FORM) == [
        "mapping:2: chunk.rows: input should be greater than or equal to 1",
        "mapping:7: entities.people.kye: is not a key that a mapping knows here; did you mean 'key'?",
        "mapping:11: entities.people.fields.name.transform[0]: unknown transform 'lowr'; "
        "did you mean 'lower'?",
        "mapping:11: entities.people.fields.name.rules[0]: unknown rule 'requird'; did you mean 'required'?",
        "mapping:13: entities.people.fields.born: stands twice",
        "mapping:13: entities.people.fields.born.transform[0]: transform 'datetime': to: field required, "
        "and til: extra inputs are not permitted",
        "mapping:14: entities.people.ignore: must be a list",
        "mapping:15: entities.cats: depends on itself",
        "mapping:19: entities.cats.natural_key: 'nam' is not one of the fields; did you mean 'name'?",
        "mapping:20: entities.cats.depends_on: there is no entity 'peple'; did you mean 'people'?",
        "mapping:22: entities.cats.fields.name: has no 'from'; a fixed value is written as "
        "transform: [{const: …}]",
        "mapping:23: entities.cats.fields.toys: must be a block of keys",
    ]


def test_everything_that_does_not_fit_the_tables_is_told_at_once() -> None:
    text = GOOD.replace("key: id", "key: ids").replace("born: {from: born", "borne: {from: brn")
    text = text.replace("emit: USER_MIGRATED", "where: shoe_sise > 3\n    on_conflict: skip")
    text = text.replace("ignore: [shoe_size]", "ignore: [name]")
    more = {name: Column(name, "text", "text") for name in ("hat", "scarf")}
    source = {"old_people": replace(SOURCE["old_people"], columns=SOURCE["old_people"].columns | more)}
    assert flaws(text, source=source) == [
        "mapping:6: entities.people.key: the table 'old_people' has no column 'ids'; did you mean 'id'?",
        "mapping:8: entities.people.where: the table 'old_people' has no column 'shoe_sise'; "
        "did you mean 'shoe_size'?",
        "mapping:9: entities.people.on_conflict: 'skip' needs a unique natural key, and people.name is not",
        "mapping:12: entities.people.fields.borne.from: the table 'old_people' has no column 'brn'; "
        "did you mean 'born'?",
        "mapping:12: entities.people.fields.borne: the table 'people' has no column 'borne'; "
        "did you mean 'born'?",
        "mapping:13: entities.people.ignore: the column 'name' is mapped and ignored",
        "mapping:13: entities.people.ignore: the source columns 'hat', 'scarf' of 'old_people' are "
        "neither mapped nor ignored",
    ]


def test_what_needs_a_table_that_is_not_there_is_not_judged() -> None:
    assert flaws(GOOD, source={}, target={}) == [
        "mapping:4: entities.people.from: the source has no table 'old_people'",
        "mapping:5: entities.people.to: the target has no table 'people'",
    ]


def test_fifty_errors_are_told_and_the_others_counted() -> None:
    text = GOOD + "".join(f"    wrong_{number}: 1\n" for number in range(70))
    with pytest.raises(MappingError) as caught:
        parse_mapping(text)
    lines = str(caught.value).splitlines()
    assert (caught.value.count, len(caught.value.flaws), len(lines)) == (70, 50, 52)
    assert lines[0] == "the mapping is wrong in 70 places:"
    assert lines[1].startswith("mapping:13: entities.people.wrong_0: is not a key")
    assert lines[-1] == "and 20 more"


@pytest.mark.parametrize("old", ["version: 1\n", "    from: old_people\n", "    natural_key: name\n"])
def test_a_mapping_that_lacks_a_part_is_judged_in_its_others(old: str) -> None:
    assert len(flaws(GOOD.replace(old, "") + "  cats: {}\n")) >= 6


BOMB = "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    "text",
    [
        "entities: {1: {}}",
        "1: 2",
        "entities: 3\nversion: 1",
        "? [a]\n: 1",
        "version: &a [*a]",
        "[" * 2000 + "]" * 2000,
        BOMB,
        "[]",
        "",
    ],
)
def test_whatever_stands_there_is_an_error_of_the_mapping(text: str) -> None:
    with pytest.raises(MappingError):
        parse_mapping(text)
