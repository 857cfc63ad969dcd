"""The manifest of a run: which stages are done, what they found, and which files they staged.

It lies in the run's work folder and holds no value of a record. A stage is done when the manifest says
so; its outcome is written before its event is appended, so a resumed run appends the same event again,
and the store ignores what it has. Each change replaces the file in one step.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines.migration.chunks import Chunk, make_private, write_private
from pipelines.migration.errors import StagedDataError
from pipelines.migration.schema import Table

_STATS = {
    "extract": "extraction_stats",
    "transform": "transformation_stats",
    "validate": "validation_stats",
    "load": "import_stats",
}


@dataclass(frozen=True)
class StageOutcome:
    """What a stage found and did, when it ended, and after how many rollbacks to a stage before it."""

    stage: str
    at: datetime
    facts: dict[str, Any] = field(default_factory=dict)
    attempt: int = 0


@dataclass
class Manifest:
    """The state of one run, as `save` writes it."""

    folder: Path
    source_tables: dict[str, Table]
    target_tables: dict[str, Table]
    outcomes: dict[str, StageOutcome] = field(default_factory=dict)
    staged: dict[str, dict[str, list[Chunk]]] = field(default_factory=dict)
    mapping_sha256: str = ""
    """The mapping of an attempt; of the first one it stands in the run's row."""

    @classmethod
    def load(cls, folder: Path) -> Manifest | None:
        """The manifest of a folder, or None. Raises StagedDataError when it cannot be read."""
        path = folder / "manifest.json"
        if not path.exists():
            return None
        try:
            fields = json.loads(path.read_bytes())
            sources, targets = (_tables(fields[side]) for side in ("source_tables", "target_tables"))
            outcomes = {
                stage: StageOutcome(stage, datetime.fromisoformat(item["at"]), item["facts"], item["attempt"])
                for stage, item in fields["outcomes"].items()
            }
            staged = {
                stage: {name: [Chunk(**chunk) for chunk in chunks] for name, chunks in entities.items()}
                for stage, entities in fields["staged"].items()
            }
        except (ValueError, KeyError, TypeError, OSError):
            raise StagedDataError("the manifest of the run cannot be read") from None
        return cls(folder, sources, targets, outcomes, staged, fields.get("mapping_sha256", ""))

    def save(self) -> None:
        """Write the whole state in one step."""
        make_private(self.folder)
        fields = {
            "mapping_sha256": self.mapping_sha256,
            "source_tables": {name: table.to_json() for name, table in self.source_tables.items()},
            "target_tables": {name: table.to_json() for name, table in self.target_tables.items()},
            "outcomes": {
                stage: {
                    "at": outcome.at.isoformat(),
                    "facts": outcome.facts,
                    "attempt": outcome.attempt,
                }
                for stage, outcome in self.outcomes.items()
            },
            "staged": {
                stage: {name: [asdict(chunk) for chunk in chunks] for name, chunks in entities.items()}
                for stage, entities in self.staged.items()
            },
        }
        write_private(self.folder / "manifest.json", json.dumps(fields).encode())

    def counts(self, stage: str) -> dict[str, dict[str, int]]:
        """The accounting of a stage: for each entity `in`, `out`, `quarantined` and `filtered`."""
        counts: dict[str, dict[str, int]] = self.outcomes[stage].facts[_STATS[stage]]["entities"]
        return counts


def _tables(fields: dict[str, Any]) -> dict[str, Table]:
    return {name: Table.from_json(table) for name, table in fields.items()}
