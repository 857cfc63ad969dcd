"""The Event Service keeps to its OpenAPI document: schemathesis, all phases, stateful."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import yaml
from sqlalchemy.engine import make_url

from eventsourcing import EventStore, HandlerError
from eventsourcing.dead_letters import DeadLetter, park
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.testing import a_migration
from pipelines.migration.legacy_panel import create_target_schema, generate_legacy_panel, mapping_path
from tests.api.document import forms, hold_against_document
from tests.api.service_process import running


@forms(short=120)
def test_the_event_service_keeps_to_its_document(
    new_database: Callable[[], str], tmp_path: Path, examples: int
) -> None:
    """Its jobs are real ones, in Dagster: migrations of a small panel, rebuilds, and re-drives."""
    settings, database = connections(tmp_path, target=new_database()), new_database()
    asyncio.run(give_up(database))
    with running(database, **settings) as service:
        hold_against_document(service, tmp_path, examples=examples)


async def give_up(database: str) -> None:
    """Leave dead letters of the group `audit` behind."""
    async with EventStore(storage=PostgresStorage(database, pool_size=2)) as store:
        events = await store.append_events(a_migration("known", users=40))
        failure = HandlerError(events[0].event_id, handler="AuditEventHandler", attempts=1, reason="planted")
        failure.__cause__ = ValueError("planted")
        async with store.storage.transaction() as transaction:
            await park(transaction, "audit", [DeadLetter(event, failure) for event in events])


def connections(folder: Path, *, target: str) -> dict[str, str]:
    """The settings of a service that can migrate `panel.db` by the mapping `panel` to `successor`."""
    for name in ("sources", "mappings"):
        (folder / name).mkdir()
    generate_legacy_panel(folder / "sources" / "panel.db", users=200, admins=3)
    (folder / "mappings" / "panel.yaml").write_text(mapping_path().read_text("utf-8"), "utf-8")
    named = make_url(target).set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)
    create_target_schema(named)
    places = folder / "connections.yaml"
    places.write_text(yaml.safe_dump({"targets": {"successor": named}}), "utf-8")
    return {"ESM_DATA_DIR": str(folder), "ESM_CONNECTIONS_FILE": str(places)}
