"""Keys of several columns, through every stage, from every source into every target."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from eventsourcing import EventStore, EventStoreConfig
from eventsourcing.canonical import decode, encode
from eventsourcing.events import RecordedEvent
from eventsourcing.storage.upgrades import upgrade
from pipelines.migration import parse_mapping
from pipelines.migration.schema import Table
from pipelines.migration.source import KeysetSnapshot, open_source
from tests.integration.migration.lab import Lab, all_events, comparable_events, fill
from tests.integration.migration.tenants import (
    EVERY_SOURCE,
    EVERY_TARGET,
    LOGINS,
    TABLES,
    TENANTS,
    NewLab,
    mapping,
    numbers,
    ran,
    source_rows,
)

REPOSITORY = Path(__file__).parents[3]


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


PARTS = """
version: 1
on_conflict: update
chunk: {rows: 3}
entities:
  marks:
    from: marks
    to: marks
    key: [who, kind, seen, day, is_old, place]
    natural_key: [who, kind, seen, day, is_old, place]
    emit: USER_MIGRATED
    fields:
      who: {from: who}
      kind: {from: kind}
      seen: {from: seen, transform: [{datetime: {from: naive_utc, to: timestamptz}}]}
      day: {from: day}
      is_old: {from: is_old}
      place: {from: place}
      note: {from: note}
"""


def marks(kind: sa.types.TypeEngine[Any], *, zone: bool) -> sa.MetaData:
    metadata = sa.MetaData()
    parts = {
        "who": sa.Uuid(as_uuid=False).with_variant(sa.Text(), "sqlite"),
        "kind": kind,
        "seen": sa.DateTime(timezone=zone),
        "day": sa.Date(),
        "is_old": sa.Boolean(),
        "place": sa.BigInteger(),
    }
    columns = [sa.Column(name, of, primary_key=True, autoincrement=False) for name, of in parts.items()]
    sa.Table("marks", metadata, *columns, sa.Column("note", sa.Text))
    return metadata


@EVERY_TARGET
@EVERY_SOURCE
async def test_every_kind_of_a_part(source: str, target: str, tenants_lab: NewLab) -> None:
    lab = tenants_lab(source, target, rows={})
    seen = datetime(2024, 2, 1, 12, 30, 15, 123456)  # noqa: DTZ001 - the source's own clock
    rows = [
        {
            "who": f"550e8400-e29b-41d4-a716-44665544{place:04}",
            "kind": ["new", "used"][place % 2],
            "seen": seen + timedelta(microseconds=place % 3, seconds=place % 2),
            "day": date(2024, 2, 28) + timedelta(days=place),
            "is_old": place % 2 == 0,
            "place": place - 4,
            "note": f"note {place}",
        }
        for place in range(8)
    ]
    fill(lab.source_url, marks(sa.Text(), zone=False), {"marks": rows})
    fill(lab.target_url, marks(sa.Enum("new", "used", name="mark_kind"), zone=True), {})
    parted = Lab(lab.source_url, lab.target_url, lab.work_dir, parse_mapping(PARTS), ("marks",))
    async with EventStore(use_memory=True) as store:
        outcome = await parted.migration(store).run()
        assert outcome.facts["statistics"]["total"]["inserted"] == 8
        again = await parted.migration(store, "migration-2").run()
        assert again.facts["statistics"]["total"]["unchanged"] == 8
        lab.execute("UPDATE marks SET note = 'mine' WHERE place = -4")
        (found,) = (await parted.migration(store).verify()).facts["differences"]
        assert (found["kind"], found["columns"]) == ("changed", ["note"])
        lab.execute("UPDATE marks SET note = 'note 0' WHERE place = -4")
        assert (await parted.migration(store).verify()).facts["ok"]
        for migration_id in ("migration-2", "migration-1"):
            undone = (await parted.migration(store, migration_id).rollback("as it was")).facts
            assert (undone["conflicts"], undone["residual_diff"]) == (0, 0)
    assert lab.rows("marks") == 0
