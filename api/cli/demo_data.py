"""What the demo migrates: a legacy panel with planted defects, and an empty target made anew each run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eventsourcing.config import Settings
from pipelines.migration.legacy_panel import (
    DEFECTS,
    create_target_schema,
    generate_legacy_panel,
    mapping_path,
)
from resources.connections import DEMO_TARGET, mapping_directory, source_directory, target_url
from resources.siblings import recreate_sibling

SOURCE = "legacy-panel.db"
MAPPING = "legacy-panel"
_CHUNK_ROWS = 250
"""Small chunks, so that there is a middle to be killed in."""


@dataclass(frozen=True, slots=True)
class DemoData:
    """The names that the jobs are given, and what they must find."""

    mapping: str
    source: str
    target: str
    source_path: Path
    target_url: str
    planted: dict[str, int]
    """Defect → how many records must be set aside for it."""
    removed: int
    """Soft-deleted users, to be left out."""

    def config(self, migration_id: str) -> dict[str, Any]:
        """The configuration of the `migrate` job."""
        names = {"mapping": self.mapping, "source": self.source, "target": self.target}
        return {**names, "migration_id": migration_id}

    @staticmethod
    def defect_of(quarantined: Mapping[str, Any]) -> str:
        """The planted defect that a `record.quarantined` payload tells of, else where it lies."""
        place = (quarantined["entity"], quarantined["rule"], quarantined["column"])
        return next((name for name, known in DEFECTS.items() if known == place), ".".join(place))


def prepare_demo(settings: Settings, *, users: int) -> DemoData:
    """Generate the legacy database and an empty target. Whatever an earlier demo left of both is gone."""
    source = source_directory(settings) / SOURCE
    mapping = mapping_directory(settings) / f"{MAPPING}.yaml"
    for path in (source, mapping):
        path.parent.mkdir(parents=True, exist_ok=True)
    mapping.write_text(
        mapping_path().read_text("utf-8").replace("rows: 1000", f"rows: {_CHUNK_ROWS}"), "utf-8"
    )
    source.unlink(missing_ok=True)
    expected = generate_legacy_panel(source, users=users)
    recreate_sibling(settings, DEMO_TARGET.replace("-", "_"))
    url = target_url(settings, DEMO_TARGET)
    create_target_schema(url)
    planted = {name: count for name, count in expected.items() if name in DEFECTS and count}
    return DemoData(MAPPING, SOURCE, DEMO_TARGET, source, url, planted, expected["removed"])
