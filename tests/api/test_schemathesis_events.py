"""The Event Service keeps to its OpenAPI document: schemathesis, all phases, stateful."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from sqlalchemy.engine import make_url

from pipelines.migration.legacy_panel import create_target_schema, generate_legacy_panel, mapping_path
from tests.api.document import hold_against_document
from tests.api.service_process import running

FORMS = [
    pytest.param(120, id="short", marks=pytest.mark.timeout(300)),
    pytest.param(2000, id="long", marks=[pytest.mark.chaos, pytest.mark.timeout(3600)]),
]


@pytest.mark.parametrize("examples", FORMS)
def test_the_event_service_keeps_to_its_document(
    new_database: Callable[[], str], tmp_path: Path, examples: int
) -> None:
    """Its jobs are real ones, in Dagster: migrations of a small panel, and rebuilds."""
    settings = connections(tmp_path, target=new_database())
    with running(new_database(), **settings) as service:
        hold_against_document(service.url, tmp_path, examples=examples)
        assert service.is_up()


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
