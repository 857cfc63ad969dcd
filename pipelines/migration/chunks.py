"""Staged chunk files: frames on disk that only their owner may read, each with its checksum."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from pipelines.migration.errors import StagedDataError, WorkFolderError


@dataclass(frozen=True)
class Chunk:
    """One staged file of a stage and an entity, or of an entity's children: `number` counts from 0."""

    file: str
    number: int
    rows: int
    sha256: str


def write_chunk(folder: Path, name: str, number: int, frame: pl.DataFrame) -> Chunk:
    """Write a frame whole or not at all, readable by its owner only; `name` is a path under the folder."""
    buffer = io.BytesIO()
    frame.write_ipc(buffer)  # compressing costs more than writing: measured 3 times
    content = buffer.getvalue()
    file = f"{name}/{number:06d}.arrow"
    path = folder / file
    make_private(path.parent)
    write_private(path, content)
    return Chunk(file, number, frame.height, hashlib.sha256(content).hexdigest())


def link_chunk(folder: Path, chunk: Chunk, name: str) -> Chunk:
    """Stage a chunk under another name too, without writing it a second time where the disk allows it."""
    file = f"{name}/{chunk.number:06d}.arrow"
    path = folder / file
    make_private(path.parent)
    try:
        os.link(folder / chunk.file, path)
    except OSError:
        write_private(path, (folder / chunk.file).read_bytes())
    return replace(chunk, file=file)


def read_chunk(folder: Path, chunk: Chunk) -> pl.DataFrame:
    """Read a staged frame. Raises StagedDataError when it is missing or not what was written."""
    try:
        content = (folder / chunk.file).read_bytes()
    except OSError:
        raise StagedDataError(f"the staged file {chunk.file} is missing") from None
    if hashlib.sha256(content).hexdigest() != chunk.sha256:
        raise StagedDataError(f"the staged file {chunk.file} is not what was written")
    return pl.read_ipc(io.BytesIO(content))


def write_private(path: Path, content: bytes) -> None:
    """Replace a file in one step; a crash leaves the old one or the new one. Mode 0600.

    Raises WorkFolderError, and the old one stands.
    """
    draft = path.with_suffix(path.suffix + ".draft")
    try:
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise WorkFolderError(error) from None


def make_private(folder: Path) -> None:
    """Make a folder that only its owner may enter, and those above it. Raises WorkFolderError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise WorkFolderError(error) from None


def remove_stage(folder: Path, stage: str) -> None:
    """Remove everything that a stage wrote; nothing there is nothing to do."""
    shutil.rmtree(folder / stage, ignore_errors=True)
