"""A call that its server dies in, at whatever write, is ended by its repeat: one run, and the same answer."""

from __future__ import annotations

import itertools
import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NamedTuple
from uuid import uuid4

import httpx2
import pytest
import pytest_asyncio

from api import event_service, migration_jobs
from api.idempotency import KEYS
from eventsourcing import (
    DeadLetterQueue,
    EventStore,
    HandlerError,
    ParkedSelection,
    Settings,
    bootstrap,
    register_handler,
)
from eventsourcing import plugins as registry
from eventsourcing.dead_letters import DeadLetter, park, parked_rows
from eventsourcing.readmodels import USER_MIGRATIONS_MODEL, read_model
from eventsourcing.rebuilds import rebuild
from eventsourcing.switching import describe
from eventsourcing.testing import InMemoryHandler
from resources.migration_journal import MigrationJournal
from tests.api.conftest import serving
from tests.api.mortal import ProcessEnded, left, storage_of
from tests.api.recorder import Recorder
from tests.api.test_migrations import place
from tests.factories import draft

__all__ = ["place"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROUP = "accounts"
MODEL = "user-migrations"


class System(NamedTuple):
    client: httpx2.AsyncClient
    recorder: Recorder
    store: EventStore


class Act(NamedTuple):
    """A call: what there is before it, what is asked, how many runs it makes, and what is true of it then."""

    path: str
    body: dict[str, Any]
    runs: int
    prepare: Callable[[System, str], Awaitable[object]]
    then: Callable[[System, str, object], Awaitable[object]]


async def nothing(system: System, name: str) -> None: ...


def a_migration(status: str, **fields: Any) -> Callable[[System, str], Awaitable[object]]:
    async def prepare(system: System, name: str) -> None:
        request = {"mapping": "panel", "source": "panel", "target": f"target-{name}", "on_failure": "keep"}
        journal = MigrationJournal(system.store.storage)
        await journal.create(name, request, status=status)
        await journal.update(name, **fields)

    return prepare


async def row_is(system: System, name: str) -> dict[str, Any]:
    """The row of a migration, as an undisturbed call leaves it."""
    row = await MigrationJournal(system.store.storage).get(name) or {}
    if row["status"] == "queued":
        assert row["dagster_run_id"] == f"run-{len(system.recorder.submitted)}"
        await MigrationJournal(system.store.storage).update(name, status="cancelled")  # lets its target go
    return {name: row.get(name) for name in ("status", "cancel_requested", "rollback_asked", "verified")}


async def parked(system: System, name: str) -> None:
    """Three aggregates parked with two letters each, the first of each failed, and nothing else."""
    everything = ParkedSelection(GROUP)
    await DeadLetterQueue(system.store).discard_selected(
        everything, by="t", why="t", whole_queue=True, limit=1000
    )
    async with system.store.storage.transaction() as transaction:
        for number in (9, 10, 95):  # their order as text is another one than by length
            events = [draft(f"{name}-{number}", event_type=f"t.{place}") for place in range(2)]
            first, second = await system.store.append_events(events)
            failure = HandlerError(first.event_id, handler="h", attempts=1, reason="planted")
            failure.__cause__ = ValueError("planted")
            await park(transaction, GROUP, [DeadLetter(first, failure), DeadLetter(second)])


async def letters_left(system: System, name: str) -> list[int]:
    rows = [row async for key, row in parked_rows(system.store.storage, GROUP) if name in key]
    return [row["letters"] for row in rows]


async def rebuilt(system: System, _name: str) -> tuple[str, str]:
    """A generation beside the live one: the tables of both, as they stand once they are switched."""
    model = read_model(MODEL)
    described = await describe(system.store.storage, model)
    if described["beside"] is None:
        await rebuild(system.store.storage, model)
        described = await describe(system.store.storage, model)
    return described["beside"]["table"], described["live"]["table"]


async def switched(system: System, _name: str, before: object) -> object:
    described = await describe(system.store.storage, read_model(MODEL))
    return (described["live"]["table"], described["beside"]["table"]) == before


async def as_row(system: System, name: str, _before: object) -> object:
    return await row_is(system, name)


async def as_letters(system: System, name: str, _before: object) -> object:
    return await letters_left(system, name)


MIGRATION = {"mapping": "panel", "source": "panel", "target": "successor", "migration_id": "{name}"}
PARKED = {"consumer_group": GROUP, "everything": True, "reason": "r"}
INTERRUPTED = {"interrupted": "rolling_back", "rollback_asked": {"reason": "r"}}
ROLLBACK = "/migrations/{name}/rollback"

ACTS = {
    "start": Act("/migrations", MIGRATION, 1, nothing, as_row),
    "plan": Act("/migrations", {**MIGRATION, "dry_run": True}, 1, nothing, as_row),
    "resume": Act("/migrations/{name}/resume", {}, 1, a_migration("failed", dagster_run_id="old"), as_row),
    "resume a rollback": Act(
        "/migrations/{name}/resume", {}, 1, a_migration("interrupted", **INTERRUPTED), as_row
    ),
    "cancel before it began": Act("/migrations/{name}/cancel", {}, 0, a_migration("queued"), as_row),
    "cancel": Act("/migrations/{name}/cancel", {}, 0, a_migration("running", dagster_run_id="one"), as_row),
    "verify": Act("/migrations/{name}/verify", {}, 1, a_migration("completed", verified=True), as_row),
    "roll back": Act(ROLLBACK, {"reason": "r"}, 1, a_migration("completed"), as_row),
    "preview a rollback": Act(ROLLBACK, {"dry_run": True}, 1, a_migration("completed"), as_row),
    "retry": Act(
        "/migrations/{name}/quarantine/retry", {"mapping": "mended"}, 1, a_migration("completed"), as_row
    ),
    "rebuild": Act(f"/read-models/{MODEL}/rebuild", {}, 1, nothing, as_letters),
    "switch": Act(f"/read-models/{MODEL}/switch", {}, 0, rebuilt, switched),
    "re-drive": Act("/dead-letters/redrive", PARKED, 1, parked, as_letters),
    "discard": Act("/dead-letters/discard", {**PARKED, "limit": 2}, 1, parked, as_letters),
    "discard whole queues": Act(
        "/dead-letters/discard", {**PARKED, "limit": 2, "whole_queue": True}, 0, parked, as_letters
    ),
}


@pytest.fixture(scope="module")
def handler() -> Iterator[None]:
    """A handler of the group, so that its queues can be re-driven."""
    made = InMemoryHandler(["t.*"])
    register_handler(made, GROUP)
    yield
    registry._handlers.pop(made.name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(place: Settings, handler: None) -> AsyncIterator[System]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "database_storage", storage_of)
        patch.setattr(migration_jobs, "OBEY_S", 0.1)
        recorder = Recorder()
        async with serving(event_service.create_app(place, recorder)) as client:
            store: EventStore = client._transport.app.state.system.store  # type: ignore[attr-defined] # what it opened
            await USER_MIGRATIONS_MODEL.catch_up(store.storage)
            yield System(client, recorder, store)


class Called(NamedTuple):
    """What a call came to, without the names that are its own."""

    status: int
    answer: str
    place: str | None
    runs: list[tuple[str, str]]
    then: object


class Call:
    """One act upon what was prepared for it."""

    def __init__(self, system: System, act: Act) -> None:
        self.system, self.act = system, act
        self.name = f"act-{uuid4().hex[:12]}"
        self.runs = len(system.recorder.submitted)
        self.before: object = None

    async def prepared(self) -> Call:
        self.before = await self.act.prepare(self.system, self.name)
        return self

    async def post(self) -> httpx2.Response:
        body = json.loads(json.dumps(self.act.body).replace("{name}", self.name))
        path = self.act.path.replace("{name}", self.name)
        return await self.system.client.post(path, json=body, headers={"Idempotency-Key": self.name})

    async def post_until(self, steps: int) -> bool:
        """Call in a process that lives for so many steps; whether it ended before the call did."""
        token = left.set([steps])
        try:
            await self.post()
        except ProcessEnded:
            return True
        finally:
            left.reset(token)
        return False

    async def told(self, response: httpx2.Response) -> Called:
        runs = [
            (job, self._plain(json.dumps(config)))
            for job, config in self.system.recorder.submitted[self.runs :]
        ]
        then = await self.act.then(self.system, self.name, self.before)
        answer, place = self._plain(response.text), self._plain(response.headers.get("location", ""))
        if isinstance(self.before, tuple):  # a switch: the tables change their places with each call
            facts = response.json()
            assert (facts["live"].pop("table"), facts["beside"].pop("table")) == self.before
            answer = json.dumps(facts)
        return Called(response.status_code, answer, place, runs, json.loads(self._plain(json.dumps(then))))

    def _plain(self, text: str) -> str:
        return re.sub(r"run-\d+", "run", text.replace(self.name, "name"))


async def held_by_the_dead(system: System) -> None:
    """Say of the keys that are held that the process which held them is gone, as it is after a kill."""
    gone = {"host": socket.gethostname(), "pid": 1, "created": 0.0}
    async with system.store.storage.transaction() as transaction:
        for key, row in await transaction.scan(KEYS, limit=10_000):
            if row.get("answer") is None:
                await transaction.put(KEYS, key, {**row, "process": gone})


@pytest.mark.parametrize("name", ACTS)
async def test_a_call_broken_off_at_any_write_is_ended_by_its_repeat(system: System, name: str) -> None:
    act = ACTS[name]
    undisturbed = await Call(system, act).prepared()
    expected = await undisturbed.told(await undisturbed.post())
    assert expected.status in (200, 202), expected.answer
    assert len(expected.runs) == act.runs
    for steps in itertools.count():
        call = await Call(system, act).prepared()
        if not await call.post_until(steps):
            break
        await held_by_the_dead(system)
        repeat = await call.post()
        again = await call.post()
        assert (again.status_code, again.content) == (repeat.status_code, repeat.content)
        assert again.headers["idempotency-replayed"] == "true"
        assert await call.told(repeat) == expected, f"broken off after {steps} steps"
    assert steps >= 10, "the entry of the audit, the key, the act, the row and the answer"


async def test_the_audit_tells_of_every_letter_that_went_whenever_its_process_died(system: System) -> None:
    queue = DeadLetterQueue(system.store)
    went = set()
    for steps in itertools.count():
        call = await Call(system, ACTS["discard whole queues"]).prepared()
        known = {entry["id"] for entry in await queue.actions()}
        died = await call.post_until(steps)
        gone = 6 - sum(await letters_left(system, call.name))
        entries = [entry for entry in await queue.actions() if entry["id"] not in known]
        outcomes = [entry["outcome"] or {} for entry in entries if entry["action"] == "discard"]
        assert sum(outcome.get("discarded", {"count": 0})["count"] for outcome in outcomes) == gone
        went.add(gone)
        if not died:
            break
    assert went == {0, 2, 4}
