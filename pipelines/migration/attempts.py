"""Attempts: a run, and each retry of what it left in quarantine.

The files of the first attempt lie in the run's folder, those of the n-th in `attempt-n` below it. An
attempt takes in exactly what the one before left in quarantine, so the quarantine of the last one is
the quarantine of the run.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pipelines.migration.chunks import read_chunk
from pipelines.migration.context import ATTEMPT_CHUNKS, RunContext
from pipelines.migration.errors import MigrationError
from pipelines.migration.manifest import Manifest
from pipelines.migration.refusals import kept_refusals
from pipelines.migration.target import Target


def _folders(folder: Path) -> list[Path]:
    """The folders of all attempts that began, in order."""
    found, number = [folder], 2
    while (folder / f"attempt-{number}" / "manifest.json").exists():
        found.append(folder / f"attempt-{number}")
        number += 1
    return found


def current_folder(folder: Path) -> Path:
    """The folder of the last attempt."""
    return _folders(folder)[-1]


def earlier_manifests(folder: Path) -> tuple[Manifest, ...]:
    """The manifests of the attempts before the last."""
    loaded = [Manifest.load(earlier) for earlier in _folders(folder)[:-1]]
    return tuple(manifest for manifest in loaded if manifest is not None)


def next_folder(folder: Path, manifest: Manifest, target: Target, migration_id: str) -> Path:
    """The folder of an attempt to come. Raises MigrationError when nothing is in quarantine."""
    attempt = len(_folders(folder))
    if not any(
        left_in_quarantine(manifest, target, migration_id, attempt, entity)
        for entity in manifest.staged["quarantine"]
    ):
        raise MigrationError(f"migration {migration_id!r} has nothing in quarantine", stage="start")
    return folder / f"attempt-{attempt + 1}"


def left_in_quarantine(
    manifest: Manifest, target: Target, migration_id: str, attempt: int, entity: str
) -> set[str]:
    """The source keys of an entity that an attempt left in quarantine, the target's refusals among them."""
    chunks = manifest.staged.get("quarantine", {}).get(entity, [])
    keys = {key for chunk in chunks for key in read_chunk(manifest.folder, chunk)["_key"]}
    with target.transaction() as transaction:
        refused = kept_refusals(transaction.connection, migration_id, entity)
    first = (attempt - 1) * ATTEMPT_CHUNKS
    return keys | {item.source_key for item in refused if first <= item.chunk < first + ATTEMPT_CHUNKS}


def taken_in(run: RunContext, entity: str) -> pl.Series | None:
    """The source keys that a retry takes in; None for the first attempt, which takes in all."""
    if run.attempt == 1:
        return None
    keys = left_in_quarantine(run.earlier[-1], run.target, run.migration_id, run.attempt - 1, entity)
    return pl.Series("_key", sorted(keys), dtype=pl.String)
