"""Measure against baselines of the same run: `make bench`, or `python -m tests.benchmarks SECTION…`.

Each figure stands beside what the database itself does with the same rows, or beside a peer. Nothing is
asserted: a ratio below its target is shown in red.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

from eventsourcing.bootstrap import collect_rarely
from tests.benchmarks import bus, folds, http, launch, memory, migration, scale, soak, store, streams
from tests.benchmarks.measure import Report

SECTIONS: dict[str, Callable[[Report], Awaitable[None]]] = {
    "store": store.measure,
    "scale": scale.measure,
    "memory": memory.measure,
    "bus": bus.measure,
    "http": http.measure,
    "soak": soak.measure,
    "folds": folds.measure,
    "launch": launch.measure,
    "streams": streams.measure,
    "migration": lambda _: asyncio.to_thread(migration.main, 1_000_000),
}

ALONE = {"soak"}
"""Sections that run when they are named."""


async def main(names: list[str]) -> None:
    """Run the sections named, else all."""
    if unknown := set(names) - set(SECTIONS):
        sys.exit(f"no section {min(unknown)!r}; there are {', '.join(SECTIONS)}")
    collect_rarely()  # as every process of ours does
    for name in names or [name for name in SECTIONS if name not in ALONE]:
        report = Report()
        report.console.rule(name)
        await SECTIONS[name](report)
        if report.rows:
            report.show(f"{name}: a second, ours and the baseline of the same run")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
