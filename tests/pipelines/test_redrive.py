"""The re-drive as a job, and the sensor that notices dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from eventsourcing import (
    DeadLetterQueue,
    EventBus,
    EventBusConfig,
    ParkedSelection,
    UserMigratedEvent,
    register_handler,
)
from eventsourcing import plugins as registry
from eventsourcing.bootstrap import open_system
from eventsourcing.events import BaseEvent
from eventsourcing.testing import InMemoryHandler
from pipelines.definitions import defs
from pipelines.sensors import parked_aggregates
from tests.pipelines.conftest import RunJob
from tests.waiting import until

Park = Callable[..., None]
WHY = {"why": "the handler is fixed", "dry_run": False}


class Accounts(InMemoryHandler):
    """A team's handler that cannot take poison yet."""

    def __init__(self) -> None:
        super().__init__(["user.migrated"], fails=self._failure)
        self.cured = False

    def _failure(self, event: BaseEvent) -> Exception | None:
        return None if self.cured or event.data["username"] != "poison" else ValueError("poison")


@pytest.fixture
def accounts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Accounts]:
    """The handler of the group `accounts`, registered as a plugin's."""
    handler = Accounts()
    register_handler(handler, "accounts")
    yield handler
    registry._handlers.pop(handler.name)  # what a test registers must not reach the next one


@pytest.fixture
def park(data_dir: Path, accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> Park:
    """Let the group meet poison in these aggregates, each with one event behind it."""
    monkeypatch.setenv("ESM_RETRY_ATTEMPTS", "0")

    async def work(numbers: range) -> None:
        async with open_system() as system:
            bus = EventBus(EventBusConfig(retry_attempts=0), store=system.store)
            await bus.subscribe([], accounts, consumer_group="accounts")
            before = (await DeadLetterQueue(system.store).groups()).get("accounts", {"letters": 0})["letters"]
            async with bus:
                for name in ("poison", "behind"):
                    await system.store.append_events([user(number, name) for number in numbers])

                async def given_up() -> bool:
                    groups = await DeadLetterQueue(system.store).groups()
                    return bool(groups) and groups["accounts"]["letters"] == before + 2 * len(numbers)

                await until(given_up)

    return lambda numbers: asyncio.run(work(numbers))


def user(number: int, name: str) -> UserMigratedEvent:
    return UserMigratedEvent(user_id=f"user-{number}", username=name, source_data={}, target_data={})


def config(**values: Any) -> dict[str, Any]:
    return {"ops": {"redrive_dead_letters": {"config": {"group": "accounts", **values}}}}


def metadata(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    (output,) = [event for event in result.all_node_events if event.is_successful_output]
    return {
        name: getattr(value, "records", None) or value.value
        for name, value in output.step_output_data.metadata.items()
    }


def parked() -> list[dict[str, Any]]:
    async def ask() -> list[dict[str, Any]]:
        async with open_system() as system:
            return await DeadLetterQueue(system.store).preview(ParkedSelection("accounts"))

    return asyncio.run(ask())


def test_a_dry_run_shows_what_is_parked_and_does_nothing(
    park: Park, run_job: RunJob, accounts: Accounts
) -> None:
    park(range(3))
    accounts.cured = True
    result = run_job("redrive", config())

    assert result.success
    shown = metadata(result)
    assert (shown["aggregates"], shown["letters"]) == (3, 6)
    assert [record.data["aggregate_id"] for record in shown["parked"]] == ["user-0", "user-1", "user-2"]
    assert accounts.events == []


def test_a_redrive_releases_and_says_how_much(park: Park, run_job: RunJob, accounts: Accounts) -> None:
    park(range(3))
    accounts.cured = True
    result = run_job("redrive", config(**WHY))

    assert result.success
    shown = metadata(result)
    assert (shown["events"], shown["released"], shown["failed_again"]) == (6, 3, 0)
    assert parked() == []
    assert [event.event_version for event in accounts.events if event.aggregate_id == "user-0"] == [1, 2]


def test_a_redrive_that_fails_again_fails_its_run(park: Park, run_job: RunJob) -> None:
    park(range(2))
    result = run_job("redrive", config(**WHY))

    assert not result.success
    failure = result.failure_data_for_node("redrive_dead_letters")
    assert failure is not None
    assert failure.user_failure_data is not None
    assert failure.user_failure_data.description == "2 aggregates failed again"
    assert [row["redrives"] for row in parked()] == [1, 1]


@pytest.mark.parametrize(
    ("wrong", "said"), [({"dry_run": False}, "why"), ({**WHY, "group": "strangers"}, "no handler")]
)
def test_a_redrive_that_cannot_begin_is_one_line(
    park: Park, run_job: RunJob, wrong: dict[str, Any], said: str
) -> None:
    park(range(1))
    result = run_job("redrive", config(**wrong))

    failure = result.failure_data_for_node("redrive_dead_letters")
    assert failure is not None
    assert failure.user_failure_data is not None
    assert said in str(failure.user_failure_data.description)


def tick(cursor: str | None) -> dg.SensorResult:
    with dg.DagsterInstance.ephemeral() as instance:
        result = parked_aggregates(dg.build_sensor_context(instance=instance, cursor=cursor))
    assert isinstance(result, dg.SensorResult)
    return result


def test_a_fresh_home_with_nothing_parked_asks_for_nothing(data_dir: Path) -> None:
    result = tick(None)
    assert not result.run_requests
    assert result.cursor == "{}"


def test_the_first_tick_tells_of_what_stands_and_the_next_one_of_nothing(park: Park) -> None:
    park(range(2))
    first = tick(None)
    again = tick(first.cursor)

    assert first.run_requests is not None
    (request,) = first.run_requests
    assert request.tags["consumer_group"] == "accounts"
    assert dg.validate_run_config(defs.resolve_job_def("redrive"), request.run_config)
    assert request.run_config["ops"]["redrive_dead_letters"]["config"]["dry_run"] is True
    assert not again.run_requests
    assert again.cursor == first.cursor


def test_a_new_dead_letter_is_noticed_and_asked_for_under_a_key_of_its_own(park: Park) -> None:
    park(range(1))
    first = tick(None)
    park(range(1, 2))
    second = tick(first.cursor)

    assert first.run_requests
    assert second.run_requests
    assert first.run_requests[0].run_key != second.run_requests[0].run_key


def test_a_cause_that_was_cleared_is_forgotten(park: Park, run_job: RunJob, accounts: Accounts) -> None:
    park(range(1))
    first = tick(None)
    accounts.cured = True
    assert run_job("redrive", config(**WHY)).success

    assert tick(first.cursor).cursor == "{}"
