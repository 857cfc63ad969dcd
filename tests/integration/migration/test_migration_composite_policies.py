"""Keys of several columns in a target that is in use: what is matched, written over and put back."""

from __future__ import annotations

from datetime import date
from typing import Any

import polars as pl
import pytest

from eventsourcing import EventStore
from pipelines.migration import parse_mapping
from pipelines.migration.transforms import Settings, register_child_function
from tests.integration.migration.lab import Lab
from tests.integration.migration.tenants import (
    EVERY_TARGET,
    LOGINS,
    TABLES,
    NewLab,
    ran,
    source_rows,
)

THERE = {
    "tenants": [{"id": 40, "code": "acme"}, {"id": 41, "code": "zzz"}],
    "accounts": [
        {"tenant_id": 40, "login": "ann", "mail": "0@old", "points": 1},
        {"tenant_id": 40, "login": "Ann", "mail": "mine", "points": 2},
        {"tenant_id": 41, "login": "ann", "mail": "other", "points": 3},
    ],
    "account_roles": [
        {"tenant_id": 40, "login": "Ann", "role": "admin", "rank": 9},
        {"tenant_id": 40, "login": "Ann", "role": "guest", "rank": 9},
    ],
    "services": [{"id": 70, "title": "service 3"}],
    "grants": [{"tenant_id": 40, "login": "Ann", "service_id": 70, "granted_on": date(2000, 1, 1)}],
    "devices": [{"id": 9, "tenant_id": 40, "owner": "Ann", "serial": 0, "model": "mine"}],
}
"""Of the source's first tenant ann is there as she is, Ann as another; her role, grant and device as well."""


def everything(lab: Lab) -> dict[str, list[Any]]:
    order = {"tenants": "id", "accounts": "1, 2", "services": "id", "devices": "id"}
    return {
        name: lab.execute(f"SELECT * FROM {name} ORDER BY {order.get(name, '1, 2, 3')}") for name in TABLES
    }


@pytest.mark.parametrize(
    ("policy", "mail", "roles", "granted", "model"),
    [
        ("skip", "mine", [("admin", 9), ("guest", 9)], "2000-01-01", "mine"),
        ("update", "1@old", [("admin", 1)], "2024-02-02", "m1"),
    ],
)
@EVERY_TARGET
async def test_what_is_there_is_matched_by_several_columns(
    target: str,
    policy: str,
    mail: str,
    roles: list[tuple[str, int]],
    granted: str,
    model: str,
    tenants_lab: NewLab,
) -> None:
    lab = tenants_lab("postgresql", target, policy=policy, rows=source_rows(1), there=THERE)
    before = everything(lab)
    async with EventStore(use_memory=True) as store:
        previewed = (await lab.migration(store, "preview").preview())["entities"]
        outcome = await lab.migration(store).run()
        counts = outcome.facts["statistics"]["entities"]
        assert {name: {**counts[name]} for name in counts} == previewed
        where = "WHERE tenant_id = 40 AND"
        assert lab.execute(f"SELECT mail, points FROM accounts {where} login = 'Ann'") == [(mail, 2)]
        assert lab.execute(f"SELECT role, rank FROM account_roles {where} login = 'Ann' ORDER BY 1") == roles
        found = lab.execute(f"SELECT granted_on FROM grants {where} login = 'Ann' AND service_id = 70")
        assert [str(day) for (day,) in found] == [granted]
        assert lab.execute(f"SELECT id, model FROM devices {where} owner = 'Ann'") == [(9, model)]
        assert lab.execute("SELECT mail FROM accounts WHERE tenant_id = 41") == [("other",)]
        assert lab.rows("accounts") == len(LOGINS) + 1
        again = (await lab.migration(store, "migration-2").run()).facts["statistics"]["total"]
        assert (again["inserted"], again["updated"]) == (0, 0)
        for migration_id in ("migration-2", "migration-1"):
            undone = await lab.migration(store, migration_id).rollback("as it was")
            assert (undone.facts["residual_diff"], undone.facts["conflicts"]) == (0, 0)
    assert everything(lab) == before


@EVERY_TARGET
async def test_the_last_column_of_a_natural_key_is_renamed(target: str, tenants_lab: NewLab) -> None:
    rows, there = source_rows(1), {name: THERE[name] for name in ("tenants", "accounts")}
    lab = tenants_lab("sqlite", target, policy="rename", rows=rows, there=there)
    text = """
version: 1
on_conflict: rename
entities:
  accounts:
    from: accounts
    to: accounts
    key: [tenant, login]
    natural_key: [tenant_id, login]
    emit: USER_MIGRATED
    fields:
      tenant_id: {from: tenant, transform: [{map: {acme: 40}}]}
      login: {from: login}
      mail: {from: mail}
    ignore: [roles]
"""
    outcome, events = await ran(lab, mapping=parse_mapping(text))
    assert outcome.facts["statistics"]["total"]["inserted"] == len(LOGINS)
    logins = {login for (login,) in lab.execute("SELECT login FROM accounts WHERE tenant_id = 40")}
    assert logins == {*LOGINS, "ann_2", "Ann_2"}
    told = {event.aggregate_id: event.data["username"] for event in events if event.aggregate_type == "user"}
    assert told["user-40,ann_2"] == "40,ann_2"


ONE_TO_ONE = """
version: 1
on_conflict: {policy}
entities:
  accounts:
    from: accounts
    to: people
    key: [tenant, login]
    natural_key: [tenant, login]
    fields:
      tenant: {{from: tenant}}
      login: {{from: login}}
    ignore: [mail, roles]
  mails:
    from: devices
    to: mails
    key: [tenant, login, serial]
    natural_key: person_id
    where: "serial = 0"
    emit: USER_MIGRATED
    fields:
      person_id: {{from: [tenant, login], ref: accounts}}
      mail: {{from: model}}
    children:
      parts: {{to: parts, parent: person_id, from: [model], transform: one_part}}
"""


@register_child_function("one_part")
def one_part(frame: pl.DataFrame, _: Settings) -> pl.DataFrame:
    """The model, once for each record."""
    return frame.select("_record", pl.col("model").alias("part"))


@pytest.mark.parametrize("policy", ["fail", "update"])
@EVERY_TARGET
async def test_a_key_that_is_nothing_but_a_reference(target: str, policy: str, tenants_lab: NewLab) -> None:
    """One column in the target, three in the source; its children have no key but hers."""
    lab = tenants_lab("sqlite", target)
    lab.execute(
        "CREATE TABLE people (id integer PRIMARY KEY, tenant text, login text, UNIQUE (tenant, login))"
    )
    lab.execute("CREATE TABLE mails (person_id integer PRIMARY KEY REFERENCES people, mail text)")
    lab.execute("CREATE TABLE parts (person_id integer PRIMARY KEY REFERENCES mails, part text)")
    if policy == "update":
        lab.execute("INSERT INTO people VALUES (50, 'acme', 'Ann')")
        lab.execute("INSERT INTO mails VALUES (50, 'before')")
    _, events = await ran(lab, mapping=parse_mapping(ONE_TO_ONE.format(policy=policy)))
    expected = {
        (row["tenant"], row["login"], row["model"], row["model"])
        for row in source_rows()["devices"]
        if row["serial"] == 0
    }
    joined = "mails m JOIN people p ON p.id = m.person_id JOIN parts c ON c.person_id = p.id"
    found = lab.execute(f"SELECT p.id, p.tenant, p.login, m.mail, c.part FROM {joined}")
    assert {tuple(row[1:]) for row in found} == expected
    assert (50, "acme", "Ann", "m1", "m1") in found or policy == "fail"
    told = {
        event.aggregate_id: event.data["target_data"] for event in events if "user-" in event.aggregate_id
    }
    assert {f"user-{row[0]}" for row in found} == {*told}
    async with EventStore(use_memory=True) as store:
        migration = lab.migration(store, mapping=parse_mapping(ONE_TO_ONE.format(policy=policy)))
        assert (await migration.rollback("as it was")).facts["residual_diff"] == 0
    there = [(50, "before")] if policy == "update" else []
    assert lab.execute("SELECT * FROM mails") == there
