"""The memory that a process held at most."""

from __future__ import annotations

from pathlib import Path


def peak_memory_mb() -> float:
    """The peak of this process since its program began. What getrusage tells of a child may be its
    parent's peak: it outlives the change of the program."""
    status = Path("/proc/self/status").read_text("utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
