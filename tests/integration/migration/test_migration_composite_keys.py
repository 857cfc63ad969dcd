"""Keys of several columns, through every stage, from every source into every target."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from eventsourcing import EventStore, EventStoreConfig
from eventsourcing.canonical import decode, encode
from eventsourcing.events import RecordedEvent
from eventsourcing.storage.upgrades import upgrade
from pipelines.migration import StageOutcome, parse_mapping
from pipelines.migration.schema import Table
from pipelines.migration.source import KeysetSnapshot, open_source
from tests.integration.migration.lab import Lab, all_events, comparable_events
from tests.integration.migration.tenants import (
    LOGINS,
    TABLES,
    TENANTS,
    create_source,
    create_target,
    mapping,
    source_rows,
)

REPOSITORY = Path(__file__).parents[3]
NewLab = Callable[..., Lab]


@pytest.fixture
def tenants_lab(new_database: Callable[[], str], tmp_path: Path) -> NewLab:
    """A lab from one kind of database into another."""

    def database(kind: str, name: str) -> str:
        if kind == "postgresql":
            return new_database()
        (tmp_path / name).touch()
        return f"sqlite:///{tmp_path / name}"

    def create(source: str, target: str, *, policy: str = "fail", rows: Any = None, there: Any = None) -> Lab:
        from_url, to_url = database(source, "source.db"), database(target, "target.db")
        create_source(from_url, rows)
        create_target(to_url, there)
        return Lab(from_url, to_url, tmp_path / "work", mapping(policy), TABLES)

    return create


EVERY_SOURCE = pytest.mark.parametrize("source", ["sqlite", "postgresql"])
EVERY_TARGET = pytest.mark.parametrize("target", ["sqlite", "postgresql"])


async def ran(lab: Lab, **given: Any) -> tuple[StageOutcome, list[RecordedEvent]]:
    async with EventStore(use_memory=True) as store:
        outcome = await lab.migration(store, **given).run()
        return outcome, await all_events(store)


def numbers(lab: Lab) -> dict[str, int]:
    """The number that each tenant has in the target."""
    return {code: number for number, code in lab.execute("SELECT id, code FROM tenants")}


def escaped(text: str) -> str:
    return text.replace("%", "%25").replace(",", "%2C")


@EVERY_TARGET
@EVERY_SOURCE
async def test_every_source_into_every_target(source: str, target: str, tenants_lab: NewLab) -> None:
    lab, rows = tenants_lab(source, target), source_rows()
    outcome, events = await ran(lab)
    counts = outcome.facts["statistics"]["entities"]
    assert {name: count["inserted"] for name, count in counts.items()} == {
        name: len(rows[table.source])
        for name, table in ((n, lab.mapping.entities[n]) for n in lab.mapping.entities)
    }
    number = numbers(lab)
    assert {*lab.execute("SELECT tenant_id, login, mail, points FROM accounts")} == {
        (number[row["tenant"]], row["login"], row["mail"], 7) for row in rows["accounts"]
    }
    assert {*lab.execute("SELECT tenant_id, login, role FROM account_roles")} == {
        (number[row["tenant"]], row["login"], role)
        for row in rows["accounts"]
        for role in row["roles"].split()
    }
    assert len(lab.execute("SELECT * FROM grants")) == len(rows["accounts_services"])
    assert len(lab.execute("SELECT * FROM devices")) == len(rows["devices"])
    assert state_of(events) == state_in(lab)
    assert {event.aggregate_id for event in events if event.aggregate_type == "user"} == {
        f"user-{number[tenant]},{escaped(login)}" for tenant in TENANTS for login in LOGINS
    }
    async with EventStore(use_memory=True) as store:
        undone = await lab.migration(store).rollback("the matrix is done")
    assert undone.facts["residual_diff"] == 0
    assert {name: lab.rows(name) for name in TABLES} == dict.fromkeys(TABLES, 0)


def state_of(events: list[RecordedEvent]) -> dict[str, Any]:
    """The accounts and grants as their events tell them, by stream."""
    return {
        event.aggregate_id: event.data["target_data"]
        for event in events
        if event.aggregate_type in ("user", "admin")
    }


def state_in(lab: Lab) -> dict[str, Any]:
    """The same as the target holds them."""
    contents = {name: rows.to_dicts() for name, (rows, _) in lab.contents().items()}
    state: dict[str, Any] = {}
    for row in contents["accounts"]:
        key = (row["tenant_id"], row["login"])
        roles = [
            {"role": role["role"], "rank": role["rank"]}
            for role in contents["account_roles"]
            if (role["tenant_id"], role["login"]) == key
        ]
        kept = {name: value for name, value in row.items() if name != "points"}
        state[f"user-{key[0]},{escaped(key[1])}"] = {**kept, "roles": roles}
    for row in contents["grants"]:
        stream = f"admin-{row['tenant_id']},{escaped(row['login'])},{row['service_id']}"
        state[stream] = decode(encode(row))
    return state


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (
            "UPDATE accounts SET mail = 'x' WHERE tenant_id = {acme} AND login = 'e,ann'",
            ("accounts", "{acme},e%2Cann", "changed", ["mail"]),
        ),
        (
            "DELETE FROM account_roles WHERE tenant_id = {acme} AND login = 'Ann'",
            ("account_roles", "{acme},Ann,admin", "missing", []),
        ),
        (
            "INSERT INTO grants VALUES ({acme}, 'ann', 1, NULL)",
            ("grants", "{acme},ann,1", "extra", []),
        ),
        (
            "UPDATE grants SET granted_on = '2000-01-01' WHERE tenant_id = {acme} AND login = 'Ann'",
            ("grants", "{acme},Ann,1", "changed", ["granted_on"]),
        ),
    ],
)
@EVERY_TARGET
async def test_what_others_change_is_found_and_named(
    target: str, statement: str, expected: tuple[str, str, str, list[str]], tenants_lab: NewLab
) -> None:
    lab = tenants_lab("sqlite", target)
    async with EventStore(use_memory=True) as store:
        await lab.migration(store).run()
        acme = numbers(lab)["acme"]
        lab.execute(statement.format(acme=acme))
        verified = (await lab.migration(store).verify()).facts
    table, key, kind, columns = expected
    assert not verified["ok"]
    found = [item for item in verified["differences"] if item["table"] == table]
    assert [(item["key"], item["kind"], item["columns"]) for item in found] == [
        (key.format(acme=acme), kind, columns)
    ]


@pytest.mark.parametrize("place", ["validate:grants", "load:accounts", "load:grants"])
@EVERY_TARGET
async def test_a_killed_run_ends_like_an_undisturbed_one(
    target: str, place: str, tenants_lab: NewLab, new_database: Callable[[], str], tmp_path: Path
) -> None:
    lab, events = tenants_lab("postgresql", target), new_database()
    await upgrade(events)
    await killed("run", lab, events, place)
    async with EventStore(EventStoreConfig(database_url=events)) as store:
        await lab.migration(store).run()
        told = comparable_events([event async for event in store.get_all_events()])
    resumed = lab.dump()
    other = tmp_path / "undisturbed"
    other.mkdir()
    async with EventStore(use_memory=True) as store:
        await lab.migration(store).rollback("to be run again")
        again = Lab(lab.source_url, lab.target_url, other, lab.mapping, TABLES)
        lab.execute("DELETE FROM mig_run")
        lab.execute("DELETE FROM mig_chunk")
        lab.execute("DELETE FROM mig_written")
    async with EventStore(use_memory=True) as store:
        await again.migration(store).run()
        assert comparable_events(await all_events(store)) == told
    assert again.dump() == resumed


@pytest.mark.parametrize("place", ["rollback:grants", "rollback:accounts"])
@EVERY_TARGET
async def test_a_killed_rollback_goes_on(
    target: str, place: str, tenants_lab: NewLab, new_database: Callable[[], str]
) -> None:
    lab, events = tenants_lab("sqlite", target), new_database()
    await upgrade(events)
    async with EventStore(EventStoreConfig(database_url=events)) as store:
        await lab.migration(store).run()
        await killed("rollback", lab, events, place)
        assert lab.execute("SELECT count(*) FROM mig_chunk WHERE undone_by = 1") != [(0,)]
        undone = (await lab.migration(store).rollback("goes on")).facts
        back = [event async for event in store.get_all_events() if event.event_type == "user.rolled_back"]
    assert (undone["residual_diff"], undone["conflicts"]) == (0, 0)
    assert {name: lab.rows(name) for name in TABLES} == dict.fromkeys(TABLES, 0)
    assert len(back) == len({event.aggregate_id for event in back}) == len(TENANTS) * len(LOGINS)


async def killed(action: str, lab: Lab, events: str, place: str) -> None:
    """Let a process of its own do it, up to this place."""
    given = (action, lab.source_url, lab.target_url, events, str(lab.work_dir), place)
    module = "tests.integration.migration.tenants"
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", module, *given, cwd=REPOSITORY)
    assert await process.wait() == -signal.SIGKILL


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


@EVERY_TARGET
async def test_a_record_that_others_changed_or_refer_to_stays(target: str, tenants_lab: NewLab) -> None:
    lab = tenants_lab("sqlite", target)
    async with EventStore(use_memory=True) as store:
        await lab.migration(store).run()
        acme = numbers(lab)["acme"]
        place = f"tenant_id = {acme} AND login ="
        lab.execute(f"UPDATE grants SET granted_on = '2000-01-01' WHERE {place} 'Ann'")
        lab.execute(f"INSERT INTO account_roles VALUES ({acme}, 'e,ann', 'owner', 1)")
        undone = (await lab.migration(store).rollback("as far as it goes")).facts
        named = {item["entity"]: (item["key"], item["reason"]) for item in undone["conflicting"]}
        assert named["grants"] == (f"{acme},Ann,1", f"grants {acme},Ann,1 was changed by others")
        keys = {(item["entity"], item["key"]): item["reason"] for item in undone["conflicting"]}
        assert f"account_roles {acme},e%2Cann,owner refers to it" in keys["accounts", f"{acme},e%2Cann"]
        assert f"grants {acme},Ann,1 refers to it" in keys["accounts", f"{acme},Ann"]
        assert {row[:2] for row in lab.execute("SELECT * FROM accounts")} == {(acme, "Ann"), (acme, "e,ann")}
        lab.execute(f"DELETE FROM account_roles WHERE {place} 'e,ann' AND role = 'owner'")
        forced = (await lab.migration(store).rollback("all of it", force=True)).facts
    assert forced["residual_diff"] == 0
    assert {name: lab.rows(name) for name in TABLES} == dict.fromkeys(TABLES, 0)


@EVERY_TARGET
@EVERY_SOURCE
async def test_what_is_wrong_is_set_aside_by_name_and_let_go(
    source: str, target: str, tenants_lab: NewLab
) -> None:
    rows = source_rows(2)
    rows["accounts"] += [
        {"tenant": "acme", "login": "line\nbreak", "mail": "x", "roles": ""},
        {"tenant": "acme", "login": "long" * 60, "mail": "x", "roles": ""},
        {"tenant": "acme", "login": "twice", "mail": "x", "roles": "user user"},
        {"tenant": "acme", "login": "mailless", "mail": None, "roles": "user"},
        {"tenant": "none,such", "login": "ann", "mail": "x", "roles": ""},
    ]
    rows["accounts_services"] += [
        {"tenant": "acme", "login": "mailless", "service_id": 3, "granted_on": None}
    ]
    lab = tenants_lab(source, target, rows=rows)
    async with EventStore(use_memory=True) as store:
        run = lab.migration(store)
        counts = (await run.run()).facts["statistics"]["entities"]
        assert (counts["accounts"]["quarantined"], counts["grants"]["quarantined"]) == (5, 1)
        told = [event async for event in store.get_all_events() if event.event_type == "record.quarantined"]
        broken = {event.data["source_key"]: (event.data["rule"], event.data["column"]) for event in told}
        assert broken == {
            "acme,line\nbreak": ("stream", "tenant_id, login"),
            "acme," + "long" * 60: ("stream", "tenant_id, login"),
            "acme,twice": ("unique", "tenant_id, login, role"),
            "acme,mailless": ("required", "mail"),
            "none%2Csuch,ann": ("reference", "tenant_id"),
            "acme,mailless,3": ("parent", "tenant_id"),
        }
        assert "record-accounts-none%2Csuch,ann" in {event.aggregate_id for event in told}
        retried = mapping(**{"mail: {from: mail, rules: [required]}": "mail: {from: mail}"})
        await lab.migration(store, mapping=retried).retry()
        released = [event async for event in store.get_all_events() if event.event_type == "record.released"]
        assert {event.data["source_key"] for event in released} == {"acme,mailless", "acme,mailless,3"}
        verified = (await lab.migration(store, mapping=retried).verify()).facts
        assert verified["ok"], verified["differences"]
        acme = numbers(lab)["acme"]
        assert lab.execute(f"SELECT service_id FROM grants WHERE tenant_id = {acme} AND login = 'mailless'")
        undone = await lab.migration(store, mapping=retried).rollback("as it was")
    assert undone.facts["residual_diff"] == 0


@EVERY_SOURCE
async def test_pages_are_read_by_the_index_and_miss_no_key(source: str, tenants_lab: NewLab) -> None:
    keys = [
        {"tenant": tenant, "login": login, "serial": serial, "model": "m"}
        for tenant in ("", "a", "A", "ä", "Z", "z", "a b", "é")
        for login in ("", "x", "X", "ß", "_x", "10", "9")
        for serial in (-5, 0, 3, 10)
    ]
    lab = tenants_lab(source, "sqlite", rows={"devices": keys})
    opened = open_source(lab.source_url)
    table = opened.tables({"devices"})["devices"]
    with opened.snapshot() as snapshot:
        given = ("serial", "tenant", "login")  # the index has another order, and it is the one to read by
        frames = [*snapshot.chunks(table, key=given, columns=tuple(table.columns), rows=5)]
        assert isinstance(snapshot, KeysetSnapshot)
        plan = plan_of(snapshot, table, given)
    assert {frame.height for frame in frames[:-1]} == {5}
    read = [(row["tenant"], row["login"], row["serial"]) for frame in frames for row in frame.to_dicts()]
    assert len(read) == len(keys)
    assert {*read} == {(row["tenant"], row["login"], row["serial"]) for row in keys}
    wanted = {
        "sqlite": "SEARCH devices USING INDEX",
        "postgresql": "Index Cond: (ROW(tenant, login, serial) >",
    }
    assert wanted[source] in plan, plan
    assert not {"Sort", "TEMP B-TREE"} & {*re.findall("Sort|TEMP B-TREE", plan)}, plan


def plan_of(snapshot: KeysetSnapshot, table: Table, key: tuple[str, ...]) -> str:
    """How the database reads a second page."""
    asked: list[sa.Select[Any]] = []
    page, columns = snapshot.page, tuple(table.columns)

    def spying(statement: sa.Select[Any], *given: Any) -> Any:
        asked.append(statement)
        return page(statement, *given)

    snapshot.page = spying  # type: ignore[assignment, method-assign]  # to see what it asks for
    reading = snapshot.chunks(table, key=key, columns=columns, rows=3)
    next(reading), next(reading)
    connection = snapshot._connection
    text = asked[1].compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})
    if connection.dialect.name == "sqlite":
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}").all()
        return "\n".join(str(row[-1]) for row in rows)
    connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
    return "\n".join(str(row[0]) for row in connection.exec_driver_sql(f"EXPLAIN {text}"))
