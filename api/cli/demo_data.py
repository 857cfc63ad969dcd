"""What the demo migrates: a legacy panel with planted defects, and an empty target made anew each run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eventsourcing.config import Settings
from pipelines.migration.legacy_panel import (
    DEFECTS,
    create_target_schema,
    generate_legacy_panel,
    mapping_path,
)
from resources.connections import DEMO_TARGET, source_directory, target_url
from resources.siblings import recreate_sibling

SOURCE = "legacy-panel.db"


@dataclass(frozen=True, slots=True)
class DemoData:
    """The names that the `migrate` job is given, and what it must find."""

    mapping: str
    source: str
    target: str
    planted: dict[str, int]
    """Defect → how many records must be set aside for it."""

    @staticmethod
    def defect_of(quarantined: Mapping[str, Any]) -> str:
        """The planted defect that a `record.quarantined` payload tells of, else where it lies."""
        place = (quarantined["entity"], quarantined["rule"], quarantined["column"])
        return next((name for name, known in DEFECTS.items() if known == place), ".".join(place))


def prepare_demo(settings: Settings, *, users: int) -> DemoData:
    """Generate the legacy database and an empty target. Whatever an earlier demo left of both is gone."""
    folder = source_directory(settings)
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / SOURCE
    source.unlink(missing_ok=True)
    expected = generate_legacy_panel(source, users=users)
    recreate_sibling(settings, DEMO_TARGET.replace("-", "_"))
    create_target_schema(target_url(settings, DEMO_TARGET))
    planted = {name: count for name, count in expected.items() if name in DEFECTS and count}
    return DemoData(str(mapping_path()), SOURCE, DEMO_TARGET, planted)
