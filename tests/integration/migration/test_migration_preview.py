"""The preview: it says what a run would do, record for record, and writes nothing anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from eventsourcing import EventStore
from pipelines.migration import SchemaIncompatibleError, TargetError, parse_mapping
from pipelines.migration.legacy_panel import DEFECTS, found_defects, mapping_path
from tests.integration.migration.lab import Lab, Panel


def everything(lab: Lab) -> dict[str, Any]:
    """Every table of the target by name, row for row, and the transaction that last wrote each."""
    names = [name for (name,) in lab.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    return {
        name: sorted(map(repr, lab.execute(f"SELECT t.xmin::text, t::text FROM {name} t"))) for name in names
    } | {"sequences": sorted(lab.execute("SELECT sequencename, last_value FROM pg_sequences"))}


async def test_a_preview_writes_nothing_and_says_what_the_run_then_does(lab: Lab, panel: Panel) -> None:
    async with EventStore(use_memory=True) as store:
        before = everything(lab)
        facts = await lab.migration(store).preview()
        assert everything(lab) == before
        assert (await store.get_event_stats())["total_events"] == 0
        assert [path for path in lab.work_dir.rglob("*") if path.is_file()] == []
        done = (await lab.migration(store).run()).facts["statistics"]["entities"]
    assert facts["ok"]
    assert facts["blockers"] == []
    for name, counts in facts["entities"].items():
        assert counts == done[name]
    assert found_defects(facts["quarantine"]) == {name: panel.expected[name] for name in DEFECTS}
    assert any("nothing fills telegram_id" in warning for warning in facts["warnings"])


async def test_samples_hold_no_secret(lab: Lab) -> None:
    async with EventStore(use_memory=True) as store:
        facts = await lab.migration(store).preview()
    (first, *_) = facts["samples"]["admins"]
    assert first["hashed_password"].startswith("hmac-sha256:")
    assert "$2b$" not in repr(facts)
    assert facts["samples"]["users"][0]["proxies"] >= 1


async def test_what_stands_in_the_way_is_named(lab: Lab) -> None:
    text = mapping_path().read_text()
    strict = parse_mapping(text.replace("max_quarantine_ratio: 0.1", "max_quarantine_ratio: 0.001"))
    async with EventStore(use_memory=True) as store:
        await lab.migration(store).start()
        lab.execute("INSERT INTO admins (username, hashed_password, is_sudo) VALUES ('x', 'x', false)")
        facts = await lab.migration(store, "migration-2", mapping=strict).preview()
    assert not facts["ok"]
    held, filled, excess = facts["blockers"]
    assert held.startswith("migration 'migration-1' holds the target since ")
    assert filled == "target table 'admins' is not empty (on_conflict: fail)"
    assert "broke a rule, 0.10% are allowed" in excess


@pytest.mark.parametrize(
    ("change", "to", "blocker"),
    [
        ("year: year}", "year: yearly}", "users.data_limit_reset_strategy: yearly is not one of"),
        ("auth_algorithm: xxh128", "auth_algorithm: xxh128", "form a cycle"),
    ],
)
async def test_schemas_that_do_not_fit_are_blocked_before_anything_is_read(
    lab: Lab, change: str, to: str, blocker: str
) -> None:
    if blocker == "form a cycle":
        lab.execute("ALTER TABLE admins ADD COLUMN favourite integer REFERENCES users (id)")
        change, to = "is_sudo: {from: is_sudo}", "is_sudo: {from: is_sudo}\n      favourite: {from: id}"
    mapping = parse_mapping(mapping_path().read_text().replace(change, to, 1))
    async with EventStore(use_memory=True) as store:
        facts = await lab.migration(store, mapping=mapping).preview()
        with pytest.raises(SchemaIncompatibleError):
            await lab.migration(store, mapping=mapping).run()
    assert blocker in facts["blockers"][0]
    assert facts["entities"] == {}


async def test_a_user_who_may_not_write_is_told_so_by_the_plan(lab: Lab, unique_role: str) -> None:
    """All that a run would fail at, step by step, is told at once; nothing is written to find out."""
    lab.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {unique_role}")
    lab.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    reader = replace(lab, target_url=lab.target_url.replace("postgres:@", f"{unique_role}:@"))
    async with EventStore(use_memory=True) as store:
        before = everything(lab)
        facts = await reader.migration(store).preview()
        assert everything(lab) == before
        assert not facts["ok"]
        lacks = {
            tuple(text.removeprefix("the target's user has no ").split(" right on the "))
            for text in facts["blockers"]
        }
        assert {("INSERT", "table users"), ("UPDATE", "table users"), ("DELETE", "table users")} <= lacks
        assert {("UPDATE", "sequence public.users_id_seq"), ("CREATE", "schema public")} <= lacks
        assert not [right for right, _ in lacks if right == "SELECT"]
        for granted in ("TABLES", "SEQUENCES"):
            lab.execute(f"GRANT ALL ON ALL {granted} IN SCHEMA public TO {unique_role}")
        facts = await reader.migration(store).preview()
        assert facts["blockers"] == ["the target's user has no CREATE right on the schema public"]
        with pytest.raises(TargetError):
            await reader.migration(store).start()
        lab.execute(f"GRANT CREATE ON SCHEMA public TO {unique_role}")
        assert (await reader.migration(store).preview())["ok"]
        await reader.migration(store).run()


@pytest.fixture
def unique_role(lab: Lab) -> Iterator[str]:
    """A user of the target's server that may log in, and nothing else."""
    name = f"reader_{uuid4().hex[:8]}"
    lab.execute(f"CREATE ROLE {name} LOGIN")
    yield name
    lab.execute(f"DROP OWNED BY {name} CASCADE")
    lab.execute(f"DROP ROLE {name}")
