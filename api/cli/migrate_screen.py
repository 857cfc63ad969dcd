"""What a migration shows while it runs: bars with rate and time left on a terminal, plain lines in a file."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from api.cli.screen import table
from pipelines.migration.context import Progress as StageProgress

EVERY_S = 2.0
"""How often a file gets a line of a stage that is under way."""

Place = tuple[str, str]

_SHOWN = 20


class _Rate(ProgressColumn):
    """Records a second, over the last seconds."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s", style="progress.data.speed")


class Bars:
    """A bar for each stage and entity, fed from whatever thread the engine works in."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.fields[stage]:<10}"),
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
        )
        self._tasks: dict[Place, TaskID] = {}
        self._waits = ""
        self._lock = threading.Lock()

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, progress: StageProgress) -> None:
        """Move the bar of a stage and entity; what it waits for is said above, once."""
        with self._lock:
            if progress.waits and progress.waits != self._waits:
                self._bars.console.print(waiting_line(progress), style="yellow", markup=False)
            self._waits = progress.waits
            if progress.waits:
                return
            place = (progress.stage, progress.entity)
            if place not in self._tasks:
                self._tasks[place] = self._bars.add_task(
                    progress.entity, total=progress.total, stage=progress.stage
                )
            self._bars.update(self._tasks[place], completed=progress.done, total=progress.total)


class Lines:
    """A line now and then, and one at the end of each stage and entity; nothing moves a cursor."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._began: dict[Place, float] = {}
        self._said: dict[Place, float] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.flush()

    def show(self, progress: StageProgress) -> None:
        """Write a line unless the last one of this stage and entity is less than two seconds old."""
        with self._lock:
            place, now = (progress.stage, progress.entity), time.monotonic()
            began = self._began.setdefault(place, now)
            is_over = progress.done >= progress.total and not progress.waits
            if not is_over and now - self._said.setdefault(place, now) < EVERY_S:
                return
            self._said[place] = now
            line = waiting_line(progress) if progress.waits else line_of(progress, now - began)
            print(line, file=self._out, flush=True)


def line_of(progress: StageProgress, seconds: float) -> str:
    """`load users 1,200 of 4,710 (25 %), 3,400/s, 1 s left`."""
    share = 100 * progress.done / progress.total if progress.total else 100.0
    text = f"{progress.stage} {progress.entity} {progress.done:,} of {progress.total:,} ({share:.0f} %)"
    if seconds > 0 and progress.done:
        rate = progress.done / seconds
        text += f", {rate:,.0f}/s"
        if progress.done < progress.total:
            text += f", {(progress.total - progress.done) / rate:.0f} s left"
    return text


def waiting_line(progress: StageProgress) -> str:
    """`load waits: the table 'users' is held by 'psql' (backend 4711, …)`."""
    return f"{progress.stage} waits: {progress.waits}"


def progress_on(console: Console) -> Bars | Lines:
    """Bars where they can move, lines where they cannot."""
    return Bars(console) if console.is_terminal else Lines(console.file)  # type: ignore[arg-type] # IO[str]


def accounting(entities: dict[str, dict[str, int]]) -> Any:
    """The counts of each entity as a table."""
    names = [*next(iter(entities.values()), {})]
    rows = [(entity, *(counts[name] for name in names)) for entity, counts in entities.items()]
    return table("Records", ("entity", *names), rows)


def quarantine_table(groups: Sequence[dict[str, Any]]) -> Any:
    """What was set aside, by rule, with the first keys."""
    rows = [
        (
            group["entity"],
            group["rule"],
            group["column"],
            group["message"],
            group["count"],
            ", ".join(map(str, group["samples"][:5])),
        )
        for group in groups
    ]
    return table("Set aside", ("entity", "rule", "column", "what is wrong", "records", "source keys"), rows)


def conflict_table(conflicting: Sequence[dict[str, Any]]) -> Any:
    """The first records that a rollback left as they are, and why."""
    rows = [(one["entity"], str(one["key"]), one["reason"]) for one in conflicting[:_SHOWN]]
    title = "Left as they are" + (f", the first {_SHOWN}" if len(conflicting) > _SHOWN else "")
    return table(title, ("entity", "key in the target", "why"), rows)


def standing_table(tables: dict[str, dict[str, int]]) -> Any:
    """What a rollback would take back of each table, and what others changed since."""
    rows = [
        (name, found["standing"], found["written"] - found["standing"], found["rows"] - found["written"])
        for name, found in tables.items()
    ]
    return table("A rollback", ("table", "would take back", "changed by others", "other rows"), rows)


def difference_table(differences: Sequence[dict[str, Any]]) -> Any:
    """Where the target differs from what was migrated."""
    rows = [
        (one["table"], one["key"], one["record"], one["kind"], ", ".join(one["columns"]))
        for one in differences
    ]
    return table("Differences", ("table", "key", "record", "what", "columns"), rows)
