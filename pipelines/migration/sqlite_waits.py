"""Who holds a SQLite file: SQLite does not say, but Linux knows which process has a lock on it."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

BUSY_S = 30
"""How long a statement waits for another writer, in seconds."""

_LOCKS = Path("/proc/locks")


def holder_of(path: Path) -> str:
    """Which file is held and by whom, as far as it can be known: a process of another machine or of
    another container cannot."""
    names = [
        f"{process.name()!r} (process {process.pid})"
        for process in map(_process, sorted(_lockers(path)))
        if process is not None
    ]
    return f"the file {path.name!r} is held by {' and '.join(names) or 'another process'}"


def _lockers(path: Path) -> set[int]:
    """The processes that hold a lock on the database, or on what it keeps beside it."""
    inodes = set()
    for file in (path, path.with_name(f"{path.name}-shm")):
        if file.exists():
            inodes.add(str(file.stat().st_ino))
    try:
        lines = [line.split() for line in _LOCKS.read_text().splitlines()]
    except OSError:
        return set()  # no Linux
    held = {int(words[4]) for words in lines if len(words) > 5 and words[5].rpartition(":")[2] in inodes}
    return held - {os.getpid()}


def _process(pid: int) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        process.name()
    except psutil.Error:
        return None
    return process
