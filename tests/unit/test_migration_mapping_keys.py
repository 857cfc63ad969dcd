"""Keys of several columns in a mapping: what is wrong with one is told with its line and its field."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest

from pipelines.migration.schema import Column, Table, Unique
from pipelines.migration.transforms import Settings, register_child_function
from tests.unit.mapping_flaws import flaws_of

MAPPING = """\
version: 1
on_conflict: update
entities:
  accounts:
    from: accounts
    to: accounts
    key: [tenant, login]
    natural_key: [tenant, login]
    fields:
      tenant: {from: tenant}
      login: {from: login}
  grants:
    from: grants
    to: grants
    key: [tenant, login, service]
    natural_key: [tenant, account, service]
    fields:
      tenant: {from: [tenant, login], ref: accounts}
      account: {from: [tenant, login], ref: accounts, ref_column: login}
      service: {from: service}
    ignore: [price]
"""
CHILD = """
    children:
      parts: {to: parts, parent: PARENT, from: [login], transform: login_parts}
  grants:"""
KINDS = {"service": Column("service", "integer", "integer"), "price": Column("price", "decimal", "numeric")}


@register_child_function("login_parts")
def login_parts(frame: pl.DataFrame, _: Settings) -> pl.DataFrame:
    """One part of each login."""
    return frame.select("_record", pl.col("login").alias("part"))


def table(name: str, *key: str, more: tuple[str, ...] = ()) -> Table:
    """A table with this key; columns are texts unless `KINDS` says otherwise."""
    columns = {column: KINDS.get(column, Column(column, "text", "text")) for column in (*key, *more)}
    return Table(name, columns, key, (Unique(key),))


SOURCE = {
    "accounts": table("accounts", "tenant", "login"),
    "grants": table("grants", "tenant", "login", "service", more=("price",)),
}
TARGET = {
    "accounts": table("accounts", "tenant", "login"),
    "grants": table("grants", "tenant", "account", "service", more=("price",)),
}


def flaws(text: str, target: dict[str, Table] = TARGET) -> list[str]:
    return flaws_of(text, SOURCE, target)


def test_keys_of_several_columns_compile() -> None:
    assert flaws(MAPPING) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  key: [tenant, login]\n", "  key: []\n", "7: entities.accounts.key: names no column"),
        (
            "  key: [tenant, login]\n",
            "  key: [tenant, tenant]\n",
            "7: entities.accounts.key: names a column twice",
        ),
        (
            "  key: [tenant, login]\n",
            "  key: [tenant, logins]\n",
            "7: entities.accounts.key: the table 'accounts' has no column 'logins'; did you mean 'login'?",
        ),
        (
            "natural_key: [tenant, login]",
            "natural_key: [tenant, name]",
            "8: entities.accounts.natural_key: 'name' is not one of the fields; known are login, tenant",
        ),
        (
            "natural_key: [tenant, login]",
            "natural_key: tenant",
            "4: entities.accounts.on_conflict: 'update' needs a unique natural key, "
            "and accounts.tenant is not",
        ),
        (
            "{from: [tenant, login], ref: accounts}",
            "{from: login, ref: accounts}",
            "18: entities.grants.fields.tenant: a reference has 2 source columns, in the order of the key, "
            "and no transform",
        ),
        (
            ", ref_column: login}",
            "}",
            "19: entities.grants.fields.account: 'account' is not a column of the key of 'accounts', "
            "which is tenant, login; name one as 'ref_column'",
        ),
        (
            "login: {from: login}",
            "login: {from: login, ref_column: login}",
            "11: entities.accounts.fields.login.ref_column: says which column of a key is meant, and "
            "there is no 'ref'",
        ),
    ],
)
def test_a_wrong_key_of_several_columns_is_told(old: str, new: str, expected: str) -> None:
    assert old in MAPPING
    assert flaws(MAPPING.replace(old, new)) == [f"mapping:{expected}"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "      service: {from: service}\n    ignore: [price]",
            "      price: {from: price}\n    ignore: []",
            "14: entities.grants.to: 'grants' has the key tenant, account, service, and "
            "nothing fills 'service'",
        ),
        (
            "service: {from: service}",
            "service: {from: service, secret: true}",
            "20: entities.grants.fields.service.secret: is secret, and part of the target's key, which "
            "stands in every event",
        ),
    ],
)
def test_every_column_of_a_target_key_is_filled_and_shown(old: str, new: str, expected: str) -> None:
    text = MAPPING.replace("[tenant, account, service]", "[tenant, account]").replace("update", "fail")
    assert old in text
    assert f"mapping:{expected}" in flaws(text.replace(old, new))


def test_a_decimal_is_no_part_of_a_key_of_the_target() -> None:
    columns = TARGET["grants"].columns | {"service": replace(KINDS["price"], name="service")}
    target = TARGET | {"grants": replace(TARGET["grants"], columns=columns)}
    reason = "the column 'service' of type numeric cannot be part of a key of several columns"
    assert flaws(MAPPING, target) == [
        f"mapping:14: entities.grants.to: {reason}",
        f"mapping:16: entities.grants.natural_key: {reason}",
    ]


@pytest.mark.parametrize(
    ("parent", "key", "expected"),
    [
        ("[tenant, login]", ("tenant", "login", "part"), []),
        (
            "tenant",
            ("tenant", "part"),
            ["parent: must name a column for each of the key of 'accounts', tenant, login"],
        ),
        (
            "[tenant, login]",
            ("tenant", "login", "part", "place"),
            ["to: 'parts' has the key tenant, login, part, place, and nothing fills 'place'"],
        ),
    ],
)
def test_the_key_of_children_is_filled(parent: str, key: tuple[str, ...], expected: list[str]) -> None:
    text = MAPPING.replace("\n  grants:", CHILD.replace("PARENT", parent))
    found = flaws(text, TARGET | {"parts": table("parts", *key)})
    assert found == [f"mapping:13: entities.accounts.children.parts.{reason}" for reason in expected]
