"""A panel of many tenants, with keys of several columns on either side; as a process, one that kills itself.

`python -m tests.integration.migration.tenants run|rollback source target events work stage:entity`:
`kill -9` at the first report of progress of that place.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa

from eventsourcing import EventStore, EventStoreConfig
from eventsourcing.events import RecordedEvent
from pipelines.migration import Mapping, Progress, StageOutcome, parse_mapping
from pipelines.migration.transforms import Settings, register_child_function
from tests.integration.migration.lab import Lab, all_events, fill

NewLab = Callable[..., Lab]
"""A lab from one kind of database into another; see `conftest.tenants_lab`."""
TABLES = ("tenants", "accounts", "account_roles", "services", "grants", "devices")
MAPPING = """\
version: 1
on_conflict: {policy}
chunk: {{rows: 12}}
thresholds: {{max_quarantine_ratio: 0.5}}
entities:
  tenants:
    from: tenants
    to: tenants
    key: code
    natural_key: code
    fields:
      code: {{from: code}}
  accounts:
    from: accounts
    to: accounts
    key: [tenant, login]
    natural_key: [tenant_id, login]
    emit: USER_MIGRATED
    fields:
      tenant_id: {{from: tenant, ref: tenants}}
      login: {{from: login}}
      mail: {{from: mail, rules: [required]}}
    children:
      roles: {{to: account_roles, parent: [tenant_id, login], from: [roles], transform: split_roles}}
  services:
    from: services
    to: services
    key: id
    natural_key: title
    fields:
      title: {{from: title}}
  grants:
    from: accounts_services
    to: grants
    key: [tenant, login, service_id]
    natural_key: [tenant_id, login, service_id]
    emit: ADMIN_MIGRATED
    fields:
      tenant_id: {{from: [tenant, login], ref: accounts}}
      login: {{from: [tenant, login], ref: accounts}}
      service_id: {{from: service_id, ref: services}}
      granted_on: {{from: granted_on}}
  devices:
    from: devices
    to: devices
    key: [tenant, login, serial]
    natural_key: [tenant_id, owner, serial]
    fields:
      tenant_id: {{from: [tenant, login], ref: accounts}}
      owner: {{from: [tenant, login], ref: accounts, ref_column: login}}
      serial: {{from: serial}}
      model: {{from: model}}
"""


@register_child_function("split_roles")
def split_roles(frame: pl.DataFrame, _: Settings) -> pl.DataFrame:
    """One role for each word, and its place among them."""
    words = frame.select("_record", pl.col("roles").str.split(" ").alias("role"))
    words = words.with_columns(pl.col("role").list.len().alias("rank")).explode("role")
    return words.filter(pl.col("role").fill_null("") != "").with_columns(pl.col("rank").cast(pl.Int64))


def mapping(policy: str = "fail", **changes: str) -> Mapping:
    """The mapping under a policy; `changes` replace text of it."""
    text = MAPPING.format(policy=policy)
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return parse_mapping(text)


def _source() -> sa.MetaData:
    metadata = sa.MetaData()

    def account() -> list[sa.Column[Any]]:
        return [sa.Column(name, sa.Text, primary_key=True) for name in ("tenant", "login")]

    sa.Table("tenants", metadata, sa.Column("code", sa.Text, primary_key=True))
    sa.Table("accounts", metadata, *account(), sa.Column("mail", sa.Text), sa.Column("roles", sa.Text))
    sa.Table("services", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("title", sa.Text))
    sa.Table(
        "accounts_services",
        metadata,
        *account(),
        sa.Column("service_id", sa.Integer, primary_key=True),
        sa.Column("granted_on", sa.Date),
    )
    sa.Table(
        "devices",
        metadata,
        *account(),
        sa.Column("serial", sa.Integer, primary_key=True),
        sa.Column("model", sa.Text),
    )
    return metadata


def _target() -> sa.MetaData:
    metadata = sa.MetaData()

    def part(name: str, *more: Any, **options: Any) -> sa.Column[Any]:
        return sa.Column(name, *more, primary_key=True, autoincrement=False, **options)

    def of_account(*own: str) -> sa.ForeignKeyConstraint:
        return sa.ForeignKeyConstraint(own, ["accounts.tenant_id", "accounts.login"])

    def below_account(name: str, *more: sa.Column[Any]) -> None:
        account = (part("tenant_id", sa.Integer), part("login", sa.String(300)))
        sa.Table(name, metadata, *account, *more, of_account("tenant_id", "login"))

    sa.Table(
        "tenants",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("code", sa.Text, nullable=False, unique=True),
    )
    sa.Table(
        "accounts",
        metadata,
        part("tenant_id", sa.ForeignKey("tenants.id")),
        part("login", sa.String(300)),
        sa.Column("mail", sa.Text),
        sa.Column("points", sa.Integer, nullable=False, server_default="7"),
    )
    below_account("account_roles", part("role", sa.Text), sa.Column("rank", sa.Integer, nullable=False))
    sa.Table(
        "services",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("title", sa.Text, nullable=False, unique=True),
    )
    below_account(
        "grants", part("service_id", sa.ForeignKey("services.id")), sa.Column("granted_on", sa.Date)
    )
    sa.Table(
        "devices",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("tenant_id", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(300), nullable=False),
        sa.Column("serial", sa.Integer, nullable=False),
        sa.Column("model", sa.Text),
        sa.UniqueConstraint("tenant_id", "owner", "serial"),
        of_account("tenant_id", "owner"),
    )
    return metadata


TENANTS = ["acme", "acm", "a,b", "a%2Cb", "", "Zoë"]
LOGINS = ["ann", "Ann", "e,ann", "x y", "1,2", "", "z%", "bob"]


def source_rows(tenants: int = 6) -> dict[str, list[dict[str, Any]]]:
    """Accounts whose keys, written one after the other, are those of others; all of them are sound."""
    accounts = [(tenant, login) for tenant in TENANTS[:tenants] for login in LOGINS]
    keyed = [{"tenant": tenant, "login": login} for tenant, login in accounts]
    day = date(2024, 2, 1)
    return {
        "tenants": [{"code": code} for code in TENANTS[:tenants]],
        "accounts": [
            {**key, "mail": f"{place}@old", "roles": ["", "admin", "admin user", "user"][place % 4]}
            for place, key in enumerate(keyed)
        ],
        "services": [{"id": number, "title": f"service {number}"} for number in (3, 5, 8)],
        "accounts_services": [
            {**key, "service_id": service, "granted_on": day + timedelta(days=place)}
            for place, key in enumerate(keyed)
            for service in (3, 5, 8)[: place % 4]
        ],
        "devices": [
            {**key, "serial": serial, "model": f"m{place}"}
            for place, key in enumerate(keyed)
            for serial in range(place % 3)
        ],
    }


def create_source(url: str, rows: dict[str, list[dict[str, Any]]] | None = None) -> None:
    fill(url, _source(), source_rows() if rows is None else rows)


def create_target(url: str, rows: dict[str, list[dict[str, Any]]] | None = None) -> None:
    fill(url, _target(), rows or {})


EVERY_SOURCE = pytest.mark.parametrize("source", ["sqlite", "postgresql"])
EVERY_TARGET = pytest.mark.parametrize("target", ["sqlite", "postgresql"])


async def ran(lab: Lab, **given: Any) -> tuple[StageOutcome, list[RecordedEvent]]:
    async with EventStore(use_memory=True) as store:
        outcome = await lab.migration(store, **given).run()
        return outcome, await all_events(store)


def numbers(lab: Lab) -> dict[str, int]:
    """The number that each tenant has in the target."""
    return {code: number for number, code in lab.execute("SELECT id, code FROM tenants")}


async def main(action: str, source: str, target: str, events: str, work: str, place: str) -> None:
    """Run it, or roll it back, up to a report of progress."""

    def reported(progress: Progress) -> None:
        if f"{progress.stage}:{progress.entity}" == place:
            os.kill(os.getpid(), signal.SIGKILL)

    async with EventStore(EventStoreConfig(database_url=events)) as store:
        made = Lab(source, target, Path(work), mapping(), TABLES).migration(store, on_progress=reported)
        await (made.run() if action == "run" else made.rollback("a rehearsal"))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
