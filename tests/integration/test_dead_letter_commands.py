"""`esm dlq` and `esm consumers` on a real database, and a re-drive that is killed again and again."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from eventsourcing import EventBus, EventBusConfig, EventStore, UserMigratedEvent
from eventsourcing.dead_letter_queue import DeadLetterQueue
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.testing import InMemoryHandler
from tests import terminal
from tests.api.service_process import running
from tests.terminal import ESM, refused
from tests.waiting import blocked_until, until

Esm = Callable[..., "subprocess.CompletedProcess[str]"]

PLUGIN = """
import asyncio, os, pathlib
from eventsourcing import EventHandler, register_handler

HERE = pathlib.Path(__file__).parent

class Ledger(EventHandler):
    def can_handle(self, event_type):
        return event_type == "user.migrated"

    async def handle(self, event):
        if event.data["username"] == "poison" and not (HERE / "cured").exists():
            raise ValueError("poison [/bold] password=hunter2")
        with (HERE / "ledger").open("a") as ledger:
            ledger.write(f"{event.aggregate_id} {event.event_version}\\n")
        await asyncio.sleep(float(os.environ.get("SLOW", "0")))

register_handler(Ledger(), consumer_group=os.environ.get("GROUP", "ledger"))
"""


@pytest.fixture
def environment(store_url: str, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "ledger_plugin.py").write_text(PLUGIN, "utf-8")
    root = str(Path(__file__).parents[2])
    return {
        **os.environ,
        "DATABASE_URL": store_url,
        "ESM_DATA_DIR": str(tmp_path / "data"),
        "ESM_PLUGINS": "ledger_plugin",
        "ESM_RETRY_ATTEMPTS": "0",
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}",
        "COLUMNS": "250",
    }


@pytest.fixture
def esm(environment: dict[str, str], tmp_path: Path) -> Esm:
    def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return terminal.esm(*arguments, settings={**environment, **changes}, directory=tmp_path)

    return run


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def park(url: str, *, aggregates: int, rounds: int, group: str = "ledger") -> None:
    """Leave parked aggregates behind, each with a failed event and what waits behind it."""

    async def work() -> None:
        async with EventStore(storage=PostgresStorage(url)) as store:
            fails = InMemoryHandler(["user.migrated"], fails=lambda _: ValueError("poison"))
            bus = EventBus(EventBusConfig(retry_attempts=0), store=store)
            await bus.subscribe([], fails, consumer_group=group)
            async with bus:
                for round_ in range(rounds):
                    name = "poison" if round_ == 0 else "ann"
                    await store.append_events(
                        [
                            UserMigratedEvent(
                                user_id=f"user-{number}", username=name, source_data={}, target_data={}
                            )
                            for number in range(aggregates)
                        ]
                    )

                async def given_up() -> bool:
                    return await letters(store) >= aggregates * rounds

                await until(given_up)

    asyncio.run(work())


async def letters(store: EventStore) -> int:
    return sum(group["letters"] for group in (await DeadLetterQueue(store).groups()).values())


def test_dead_letters_are_listed_shown_redriven_and_discarded(
    esm: Esm, store_url: str, tmp_path: Path
) -> None:
    park(store_url, aggregates=3, rounds=2)
    (summary,) = lines(esm("dlq", "list", "--json"))
    assert (summary["group"], summary["aggregates"], summary["letters"]) == ("ledger", 3, 6)
    (cause,) = summary["causes"]

    preview = esm("dlq", "redrive", "ledger", "--fingerprint", cause, "--dry-run", "--json")
    assert {row["aggregate_id"] for row in lines(preview)} == {"user-0", "user-1", "user-2"}
    failed = esm("dlq", "redrive", "ledger", "--all", "--why", "a try")
    assert failed.returncode == 1, failed.stderr
    shown = esm("dlq", "show", "ledger", "user-0")
    assert "poison [/bold] password=***" in shown.stdout
    assert "Traceback" in shown.stdout
    assert "hunter2" not in shown.stdout
    assert all("data" not in row["event"] for row in lines(esm("dlq", "show", "ledger", "user-0", "--json")))
    assert "username" in esm("dlq", "show", "ledger", "user-0", "--payload").stdout

    discarded = esm("dlq", "discard", "ledger", "user-0", "--why", "a test account", "--by", "bob")
    assert discarded.returncode == 0, discarded.stderr
    (tmp_path / "cured").touch()
    done = esm("dlq", "redrive", "ledger", "--all", "--why", "fixed", "--json")
    assert (done.returncode, lines(done)[0]["released"], lines(done)[0]["letters"]) == (0, 2, 4)

    assert esm("dlq", "list", "--json").stdout == ""
    told = [(entry["action"], entry["why"]) for entry in lines(esm("dlq", "actions", "--json"))]
    assert told == [("redrive", "fixed"), ("discard", "a test account"), ("redrive", "a try")]
    order = (tmp_path / "ledger").read_text().split("\n")
    assert sorted(order[:-1]) == ["user-0 2", "user-1 1", "user-1 2", "user-2 1", "user-2 2"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("redrive", "ledger", "--why", "w"), "--all"),
        (("redrive", "ledger", "--all"), "why"),
        (("redrive", "strangers", "--all", "--why", "w"), "no handler of the group 'strangers'"),
        (("show", "ledger", "nobody"), "ledger/nobody"),
        (("discard", "ledger", "nobody", "--why", "w"), "ledger/nobody"),
    ],
)
def test_a_wrong_call_is_one_line(esm: Esm, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(esm("dlq", *arguments))


def test_a_redrive_killed_again_and_again_ends_right(
    esm: Esm, environment: dict[str, str], store_url: str, tmp_path: Path
) -> None:
    aggregates, rounds = 12, 6
    park(store_url, aggregates=aggregates, rounds=rounds)
    (tmp_path / "cured").touch()
    ledger = tmp_path / "ledger"
    for kill in range(1, 4):
        command = [*ESM, "dlq", "redrive", "ledger", "--all", "--why", "fixed"]
        with subprocess.Popen(
            command, env={**environment, "SLOW": "0.02"}, cwd=tmp_path, stdout=subprocess.DEVNULL
        ) as redriving:
            blocked_until(lambda least=15 * kill: len(written(ledger)) >= least)  # type: ignore[misc]  # bound here
            redriving.kill()

    assert esm("dlq", "redrive", "ledger", "--all", "--why", "fixed").returncode == 0

    handled: dict[str, list[int]] = {}
    for line in written(ledger):
        aggregate_id, version = line.split()
        handled.setdefault(aggregate_id, []).append(int(version))
    assert len(handled) == aggregates
    for versions in handled.values():
        assert sorted(set(versions)) == list(range(1, rounds + 1)), "nothing is lost"
        assert versions == sorted(versions), "a repeated event is repeated at once, and nothing overtakes"
        assert len(versions) <= rounds + 3, "a kill repeats one event of an aggregate at most"


def written(ledger: Path) -> list[str]:
    """What the handler wrote down of each event."""
    return ledger.read_text().splitlines() if ledger.exists() else []


def test_the_commands_of_the_guide_run(esm: Esm, store_url: str, tmp_path: Path) -> None:
    """Those of the guide to the bus, in its order, on a store where the aggregates it names are parked."""
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "operate-the-bus.md").read_text("utf-8")
    park(store_url, aggregates=20, rounds=2, group="accounts")
    (tmp_path / "cured").touch()
    commands = [shlex.split(line)[1:] for line in re.findall(r"^esm .*$", guide, re.M)]
    assert len(commands) == 10
    everything = next(place for place, command in enumerate(commands) if "--cap" in command)
    commands.append(commands.pop(everything))  # else nothing is left to discard

    for command in commands:
        done = esm(*command, GROUP="accounts")
        assert done.returncode == 0, (command, done.stdout, done.stderr)

    assert esm("dlq", "list", "--json").stdout == ""


def test_the_calls_of_the_guide_are_answered(
    environment: dict[str, str], store_url: str, tmp_path: Path, new_database: Callable[[], str]
) -> None:
    """Those over HTTP, against the service with the handler's plugin and jobs in Dagster."""
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "operate-the-bus.md").read_text("utf-8")
    (script,) = re.findall(r"```bash\n(curl .*?)```", guide, re.DOTALL)
    park(store_url, aggregates=20, rounds=2, group="accounts")
    (tmp_path / "cured").touch()
    names = ("ESM_DATA_DIR", "ESM_PLUGINS", "ESM_RETRY_ATTEMPTS", "PYTHONPATH")
    given = {name: environment[name] for name in names}
    given["ESM_DAGSTER_DATABASE_URL"] = new_database().replace("+asyncpg", "+psycopg2")
    with running(store_url, GROUP="accounts", **given) as service:
        asked = script.replace("localhost:8006", f"127.0.0.1:{service.port}").replace("curl ", "curl -sf ")
        done = subprocess.run(["bash", "-euc", asked], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        answers = re.sub(r"(?<=})(?={)", "\n", done.stdout).splitlines()
        letters, counted, discarded, consumers = map(json.loads, answers)
        assert len(letters["dead_letters"]) == 40
        assert (counted["status"], counted["aggregates"], counted["letters"]) == ("counted", 20, 40)
        assert (discarded["letters"], discarded["behind"]) == (1, 1)
        assert {row["parked"] for row in consumers["consumers"] if row["name"] == "accounts"} <= {19, 20}
        left = f"{service.url}/dead-letters?aggregate_id=user-18"
        blocked_until(lambda: httpx2.get(left).json() == {"dead_letters": []})


def test_consumers_are_shown_with_their_lag(esm: Esm, store_url: str) -> None:
    park(store_url, aggregates=2, rounds=1)

    rows = {row["name"]: row for row in lines(esm("consumers", "--json"))}
    shown = esm("consumers")

    assert (rows["ledger"]["kind"], rows["ledger"]["events"], rows["ledger"]["parked"]) == ("group", 0, 2)
    assert rows["event-statistics.v1"]["events"] == 2
    assert rows["event-statistics.v1"]["seconds"] > 0
    assert "ledger" in shown.stdout
