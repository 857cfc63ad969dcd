"""Verification: whatever is done to the target behind the run's back is found and named, and nothing else."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import polars as pl
import pytest

from eventsourcing import EventQuery, EventStore, EventStoreConfig
from eventsourcing.storage.upgrades import upgrade
from pipelines.migration import buckets, parse_mapping, told
from pipelines.migration.legacy_panel import mapping_path
from pipelines.migration.target import open_target
from tests.integration.migration.lab import Lab


async def differences(lab: Lab, store: EventStore, **given: Any) -> set[tuple[Any, ...]]:
    facts = (await lab.migration(store, **given).verify()).facts
    assert facts["ok"] is not bool(facts["differences"])
    return {
        (one["entity"], one["table"], one["key"], one["record"], one["kind"], tuple(one["columns"]))
        for one in facts["differences"]
    }


async def test_each_mutation_is_found_and_named(lab: Lab) -> None:
    async with EventStore(use_memory=True) as store:
        await lab.migration(store).run()
        assert await differences(lab, store) == set()
        expected: set[tuple[Any, ...]] = set()
        [(user,)] = lab.execute("SELECT min(id) FROM users")
        lab.execute(f"UPDATE users SET note = coalesce(note, '') || 'x' WHERE id = {user}")
        expected |= {("users", "users", str(user), str(user), "changed", ("note",))}
        assert await differences(lab, store) == expected, "a changed byte"

        [(one, first), (two, second)] = lab.execute(
            "SELECT id, user_id FROM proxies WHERE type = 'VLESS' ORDER BY id LIMIT 2"
        )
        lab.execute(
            f"UPDATE proxies a SET settings = b.settings FROM proxies b "
            f"WHERE (a.id, b.id) IN (({one}, {two}), ({two}, {one}))"
        )
        expected |= {("users", "proxies", str(one), str(first), "changed", ("settings",))}
        expected |= {("users", "proxies", str(two), str(second), "changed", ("settings",))}
        assert await differences(lab, store) == expected, "two swapped UUIDs"

        [(child, parent)] = lab.execute("SELECT id, user_id FROM proxies ORDER BY id DESC LIMIT 1")
        lab.execute(f"DELETE FROM proxies WHERE id = {child}")
        expected |= {("users", "proxies", str(child), str(parent), "missing", ())}
        assert await differences(lab, store) == expected, "a deleted child"

        columns = "username || '_2', status, used_traffic, data_limit_reset_strategy, created_at"
        lab.execute(
            "INSERT INTO users (id, username, status, used_traffic, data_limit_reset_strategy, created_at) "
            f"SELECT 99999, {columns} FROM users WHERE id = {user}"
        )
        expected |= {("users", "users", "99999", "99999", "extra", ())}
        assert await differences(lab, store) == expected, "a doubled row"

        [(proxy, owner)] = lab.execute("SELECT id, user_id FROM proxies ORDER BY id LIMIT 1 OFFSET 20")
        lab.execute(
            f"INSERT INTO proxies (id, user_id, type, settings) SELECT 99999, user_id, type, settings "
            f"FROM proxies WHERE id = {proxy}"
        )
        expected |= {("users", "proxies", "99999", str(owner), "extra", ())}
        assert await differences(lab, store) == expected, "a doubled child"

        [(admin,)] = lab.execute("SELECT id FROM admins ORDER BY id LIMIT 1")
        lab.execute(f"UPDATE admins SET hashed_password = repeat('x', 60) WHERE id = {admin}")
        expected |= {("admins", "admins", str(admin), str(admin), "changed", ("hashed_password",))}
        assert await differences(lab, store) == expected, "another password"


async def test_a_changed_row_is_named_although_its_work_table_was_changed_with_it(lab: Lab) -> None:
    """Who can write to the target can write to our work tables; the events are out of his reach."""
    async with EventStore(use_memory=True) as store:
        await lab.migration(store).run()
        [(key,)] = lab.execute("SELECT id FROM users WHERE note IS NULL ORDER BY id LIMIT 1")
        lab.execute(f"UPDATE users SET note = 'x' WHERE id = {key}")
        facts = (await lab.migration(store).verify()).facts
        (found,) = facts["differences"]
    assert found["found_by"] == ["events", "rows"]
    assert facts["events"]["users"]["users"]["changed"] == 1


@pytest.mark.parametrize("keeps_text", [True, False])
async def test_texts_of_events_that_are_the_same_settle_it_and_others_prove_nothing(
    keeps_text: bool, lab: Lab, new_database: Callable[[], str]
) -> None:
    """A store may write the same values in another way, and a change is found in either."""
    url = new_database()
    await upgrade(url)
    async with EventStore(EventStoreConfig(database_url=url)) as kept:
        store = kept if keeps_text else SpacedOut(kept)
        await lab.migration(store).run()
        sound = (await lab.migration(store).verify()).facts
        parts = [part for parts in sound["events"].values() for part in parts.values()]
        assert sound["ok"]
        assert sound["differences"] == []
        assert any(part["unequal"] for part in parts) is not keeps_text
        [(key,)] = lab.execute("SELECT min(id) FROM users")
        lab.execute(f"UPDATE users SET note = coalesce(note, '') || 'x' WHERE id = {key}")
        (found,) = (await lab.migration(store).verify()).facts["differences"]
    assert (found["key"], found["columns"], found["found_by"]) == (str(key), ["note"], ["events", "rows"])


async def test_what_is_sound_is_compared_without_reading_any_payload(
    lab: Lab, new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records and their children alike; the first child that was changed makes the payloads be read."""
    url, decode = new_database(), told._target_data
    read: list[str] = []
    await upgrade(url)

    def noted(payload: str) -> told.Row:
        read.append(payload)
        return decode(payload)

    monkeypatch.setattr(told, "_target_data", noted)
    async with EventStore(EventStoreConfig(database_url=url)) as store:
        await lab.migration(store).run()
        assert (await lab.migration(store).verify()).facts["ok"]
        assert read == []
        lab.execute("UPDATE proxies SET type = 'Trojan' WHERE id = (SELECT min(id) FROM proxies)")
        (found,) = (await lab.migration(store).verify()).facts["differences"]
    assert (found["table"], found["columns"]) == ("proxies", ["type"])
    assert read != []


class SpacedOut:
    """A store that tells the same payloads with spaces in them."""

    def __init__(self, store: EventStore) -> None:
        self.append_events, self.append_frame, self.read = store.append_events, store.append_frame, store.read
        self._frames = store.read_frames

    async def read_frames(self, query: EventQuery) -> AsyncIterator[pl.DataFrame]:
        async for frame in self._frames(query):
            spaced = [json.dumps(json.loads(text)) for text in frame["data"]]
            yield frame.with_columns(pl.Series("data", spaced, dtype=pl.String))


async def test_a_scan_that_nobody_reads_to_its_end_frees_its_connection(lab: Lab) -> None:
    """A page a row, of which two are made ahead: the server waits for the third to be taken."""
    async with EventStore(use_memory=True) as store:
        await lab.migration(store).run()
    target = open_target(lab.target_url)
    users = target.tables({"users"})["users"]

    def leave() -> None:
        with target.transaction() as transaction:
            pages = transaction.scan(users, ["id"], rows=1)
            assert next(pages).height == 1
            raise LookupError

    with pytest.raises(LookupError) as left:
        leave()
    assert left.tb is not None, "whose frames hold the scan"
    for thread in threading.enumerate():
        if thread.name.startswith("outflow"):
            thread.join(5)
            assert not thread.is_alive()
    with target.transaction() as transaction:
        next(pages := transaction.scan(users, ["id"], rows=1))
        del pages
        assert transaction.count(users) == lab.rows("users") > 9
    target.close()


async def test_credentials_are_held_against_what_the_panel_derives_itself(lab: Lab) -> None:
    """The trap of the wrong algorithm: every UUID is well-formed, and every client disconnects."""
    wrong = parse_mapping(
        mapping_path().read_text().replace("auth_algorithm: xxh128", "auth_algorithm: plain")
    )
    async with EventStore(use_memory=True) as store:
        await lab.migration(store, mapping=wrong).run()
        honest = (await lab.migration(store, mapping=wrong).verify()).facts
        [(count,)] = lab.execute("SELECT count(DISTINCT user_id) FROM proxies")
        lab.execute(
            "UPDATE mig_run SET mapping_sha256 = '" + lab.mapping.sha256 + "'"
        )  # as if it had been meant otherwise
        facts = (await lab.migration(store).verify()).facts
    assert honest["ok"], "what was asked for was done"
    credentials = facts["invariants"]["users.proxies"]
    assert credentials["broken"] == count == credentials["checked"]


async def test_a_sequence_left_behind_is_found(lab: Lab) -> None:
    async with EventStore(use_memory=True) as store:
        await lab.migration(store).run()
        lab.execute("SELECT setval('users_id_seq', 1)")
        facts = (await lab.migration(store).verify()).facts
    assert not facts["ok"]
    assert not facts["sequences"]["users"]["ok"]


async def test_after_a_rollback_nothing_of_the_run_stands(lab: Lab) -> None:
    async with EventStore(use_memory=True) as store:
        await lab.migration(store).run()
        [(owned,)] = lab.execute("SELECT id FROM users WHERE admin_id IS NULL ORDER BY id LIMIT 1")
        await lab.migration(store).rollback("a rehearsal")
        facts = (await lab.migration(store).verify()).facts
    assert owned
    assert facts["ok"]
    assert {table["standing"] for table in facts["tables"].values()} == {0}
    assert {table["rows"] for table in facts["tables"].values()} == {0}


@pytest.mark.parametrize("at_once", [1, 1_000_000])
def test_buckets_find_every_difference_however_little_they_hold(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "ROWS_IN_MEMORY", at_once)
    keys = [str(number) for number in range(5000)]
    frame = pl.DataFrame(
        {"key": keys, "hash": [f"{int(key) * 2654435761 % 2**64:064x}"[::-1] for key in keys]}
    )
    other = frame.with_columns(
        pl.when(pl.col("key").is_in(["17", "3000"])).then(pl.lit("f" * 64)).otherwise("hash").alias("hash")
    ).filter(pl.col("key") != "42")
    other = pl.concat([other, pl.DataFrame({"key": ["twice", "17"], "hash": ["a" * 64, "b" * 64]})])
    halves = [other.slice(2500), other.slice(0, 2500)]
    found = buckets.compare(lambda: [frame], lambda: halves, first=100)
    assert found.counts == {"changed": 2, "missing": 1, "extra": 1}
    assert sorted(found.rows) == sorted(
        [("changed", "17"), ("changed", "3000"), ("missing", "42"), ("extra", "twice")]
    )
    assert found.matched == 5000 - 3
    assert buckets.compare(lambda: [frame], lambda: [frame.sort("hash")], first=100).unequal == []


def side(*rows: tuple[str, str]) -> buckets.Rows:
    return lambda: [pl.DataFrame([*rows], schema=["key", "hash"], orient="row")]


def in_one_bucket() -> tuple[str, str]:
    """Two keys that fall into the same bucket."""
    first, *others = (str(number) for number in range(20 * buckets.COUNT))
    place = [*buckets.Sums.of(side((first, ""))).buckets()]
    same = (key for key in others if [*buckets.Sums.of(side((key, ""))).buckets()] == place)
    return first, next(same)


def test_what_cancels_itself_out_is_found() -> None:
    """Equal rows in pairs, which an XOR of their hashes would not see, and hashes that changed places."""
    doubled = buckets.compare(side(("k", "a"), ("k", "a")), side(("k", "b"), ("k", "b")), first=9)
    assert doubled.rows == [("changed", "k")]
    pairs = buckets.compare(side(("k", "a"), ("k", "b"), ("k", "b")), side(*[("k", "a")] * 3), first=9)
    assert pairs.rows == [("changed", "k")]
    two_more = buckets.compare(side(("k", "a")), side(*[("k", "a")] * 3), first=9)
    assert two_more.rows == [("changed", "k")]
    one, other = in_one_bucket()
    for moved in (
        side((one, "y"), (other, "x")),
        side((one, "xy"), (other, "")),
        side((one, "x"), (one, "y")),
    ):
        swapped = buckets.compare(side((one, "x"), (other, "y")), moved, first=9)
        assert {key for _, key in swapped.rows} == {one, other}
