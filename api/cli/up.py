"""`esm up`: everything on one machine, supervised, and stopped cleanly."""

from __future__ import annotations

import signal
import time
from contextlib import nullcontext
from types import FrameType

import httpx2
import typer
from rich.live import Live
from rich.table import Table

from api.cli.processes import Process, Supervisor, processes, refuse_used_ports
from api.cli.screen import console
from eventsourcing.config import Settings
from eventsourcing.errors import UnavailableError
from eventsourcing.storage.embedded import EmbeddedPostgres
from resources.dagster_home import prepare_dagster_home

POLL_S = 0.5
READY_WITHIN_S = 90


class _Stop:
    """Set by the first SIGINT or SIGTERM."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True


app = typer.Typer()


@app.command()
def up() -> None:
    """Serve everything on this machine: services, worker, Dagster's UI and daemon. Ctrl-C stops it."""
    settings = Settings.load()
    stop = _Stop()
    programs = processes(settings)
    supervisor = Supervisor(settings)
    refuse_used_ports(programs, settings.bind_host)
    embedded = EmbeddedPostgres(settings.data_dir) if settings.database_url is None else None
    if embedded is not None:
        embedded.start()
    try:
        with embedded.in_use() if embedded is not None else nullcontext():
            _serve(settings, supervisor, programs, stop)
    finally:
        if embedded is not None:
            embedded.stop()
    console.print("Stopped.")


def _serve(settings: Settings, supervisor: Supervisor, programs: list[Process], stop: _Stop) -> None:
    running = supervisor.start(programs, prepare_dagster_home(settings))
    try:
        _watch(settings, supervisor, programs, stop)
    finally:
        console.print("Stopping …")
        running.send_signal(signal.SIGTERM)
        running.wait(timeout=60)


def _watch(settings: Settings, supervisor: Supervisor, programs: list[Process], stop: _Stop) -> None:
    """Show the processes until somebody asks to stop. Raises UnavailableError when one keeps failing."""
    deadline = time.monotonic() + READY_WITHIN_S
    announced = False
    with Live(console=console, auto_refresh=False, transient=not console.is_terminal) as live:
        while not stop.asked:
            states = supervisor.states()
            if states is None and time.monotonic() > deadline:
                raise UnavailableError("the supervisor is gone; see " + str(supervisor.logs))
            live.update(_table(settings, programs, states or {}), refresh=console.is_terminal)
            _refuse_fatal(supervisor, states or {})
            if not announced and _ready(settings, programs):
                announced = True
                deadline = time.monotonic()
                _announce(settings, programs, supervisor)
            time.sleep(POLL_S)


def _refuse_fatal(supervisor: Supervisor, states: dict[str, dict[str, object]]) -> None:
    for name, state in states.items():
        if state["statename"] == "FATAL":
            log = supervisor.logs / f"{name}.log"
            raise UnavailableError(
                f"{name} does not start; the end of {log}:\n{_last_lines(log.read_text())}"
            )


def _last_lines(text: str) -> str:
    return "\n".join(text.splitlines()[-5:])


def _ready(settings: Settings, programs: list[Process]) -> bool:
    """Whether every web server answers."""
    try:
        for program in programs:
            if program.port is not None:
                path = "server_info" if program.name == "dagster-webserver" else "readyz"
                httpx2.get(f"http://{settings.bind_host}:{program.port}/{path}", timeout=2).raise_for_status()
    except httpx2.HTTPError:
        return False
    return True


def _announce(settings: Settings, programs: list[Process], supervisor: Supervisor) -> None:
    if not console.is_terminal:
        for program in programs:
            if program.port is not None:
                console.print(
                    f"{program.name:<18} http://{settings.bind_host}:{program.port}  {program.shows}"
                )
    console.print(f"Ready. Logs: {supervisor.logs}. Ctrl-C stops everything.")


def _table(settings: Settings, programs: list[Process], states: dict[str, dict[str, object]]) -> Table:
    made = Table(title="event-sourced migration", title_justify="left", title_style="bold cyan")
    for column in ("process", "state", "address", "shows"):
        made.add_column(column)
    for program in programs:
        state = str(states.get(program.name, {}).get("statename", "starting")).lower()
        colour = "green" if state == "running" else "yellow"
        address = f"http://{settings.bind_host}:{program.port}" if program.port else ""
        made.add_row(program.name, f"[{colour}]{state}[/{colour}]", address, program.shows)
    return made
