"""The operators' calls on dead letters and consumers, against the service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest
import pytest_asyncio

from api import event_service
from api.access import Scope
from eventsourcing import (
    DeadLetterQueue,
    EventBus,
    EventBusConfig,
    EventStore,
    Settings,
    UserMigratedEvent,
    register_handler,
)
from eventsourcing import plugins as registry
from eventsourcing.events import BaseEvent
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.testing import InMemoryHandler
from tests.api.callers import bearer, guarded, key_for
from tests.api.conftest import InlineLauncher, assert_problem, serving
from tests.waiting import until

CANARY = "Ada-Canary"
ALL = {"consumer_group": "accounts", "everything": True, "reason": "names may be empty now"}


class Accounts(InMemoryHandler):
    """A team's handler that cannot take poison yet."""

    def __init__(self) -> None:
        super().__init__(["user.migrated"], fails=self._failure)
        self.cured = False

    def _failure(self, event: BaseEvent) -> Exception | None:
        poison = event.data["username"] == CANARY
        return ValueError(f"no account for {CANARY}") if poison and not self.cured else None


@pytest.fixture
def accounts() -> Iterator[Accounts]:
    """The handler of the group `accounts`, registered as a plugin's."""
    handler = Accounts()
    register_handler(handler, "accounts")
    yield handler
    registry._handlers.pop(handler.name)


@pytest_asyncio.fixture
async def store(store_url: str, accounts: Accounts) -> AsyncIterator[EventStore]:
    """Three aggregates parked in `accounts`, each with one event behind the failed one; one in `others`."""
    async with EventStore(storage=PostgresStorage(store_url, pool_size=2)) as made:
        bus = EventBus(EventBusConfig(retry_attempts=0), store=made)
        await bus.subscribe([], accounts, consumer_group="accounts")
        others = InMemoryHandler(["user.migrated"], fails=lambda _: ValueError("never"))
        await bus.subscribe([], others, consumer_group="others")
        async with bus:
            for name in (CANARY, "behind"):
                await made.append_events([user(number, name) for number in range(3)])
            await until(lambda: has_letters(made, 12))
        yield made


async def has_letters(store: EventStore, count: int) -> bool:
    return await letters(store) >= count


def user(number: int, name: str) -> UserMigratedEvent:
    return UserMigratedEvent(user_id=f"user-{number}", username=name, source_data={}, target_data={})


async def letters(store: EventStore, *groups: str) -> int:
    found = await DeadLetterQueue(store).groups()
    return sum(row["letters"] for name, row in found.items() if not groups or name in groups)


@pytest.fixture
def launcher(store_url: str) -> InlineLauncher:
    return InlineLauncher(store_url)


@pytest_asyncio.fixture
async def client(
    store: EventStore, store_url: str, launcher: InlineLauncher
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the service with authentication on, as an operator who may see personal data."""
    settings = guarded(Settings(database_url=store_url), rate_limit=0)
    async with serving(event_service.create_app(settings, launcher)) as made:
        made.headers.update(bearer((await key_for(store, Scope.ADMIN, Scope.READ_PERSONAL))[1]))
        yield made


async def ended(launcher: InlineLauncher, run_id: str) -> None:
    await launcher.runs[run_id]


async def test_dead_letters_are_listed_by_group_aggregate_and_type_in_pages(
    client: httpx2.AsyncClient,
) -> None:
    everything = (await client.get("/dead-letters")).json()["dead_letters"]
    assert [(row["consumer_group"], row["event"]["aggregate_id"], row["status"]) for row in everything] == [
        (group, f"user-{number}", status)
        for group in ("accounts", "others")
        for number in range(3)
        for status in ("failed", "waiting")
    ]
    assert everything[0]["event"]["data"]["username"] == CANARY
    assert (everything[0]["attempts"], everything[0]["redrives"]) == (1, 0)
    assert everything[0]["first_failed_at"] is not None
    paged, url = [], "/dead-letters?limit=5"
    while url:
        page = await client.get(url)
        paged += page.json()["dead_letters"]
        url = page.links.get("next", {}).get("url", "")
    assert paged == everything

    async def ids(**filters: str) -> list[str]:
        found = await client.get("/dead-letters", params=filters)
        return [row["id"] for row in found.json()["dead_letters"]]

    assert await ids(consumer_group="others") == [row["id"] for row in everything[6:]]
    both = [row["id"] for row in everything if row["event"]["aggregate_id"] == "user-1"]
    assert await ids(aggregate_id="user-1") == both
    assert await ids(aggregate_id="user-1", consumer_group="accounts") == both[:2]
    assert await ids(event_type="admin.migrated") == []
    assert await ids(event_type="user.migrated", aggregate_id="user-1") == both
    assert await ids(consumer_group="nobody") == []
    assert_problem(await client.get("/dead-letters", params={"cursor": "nonsense"}), 422, "invalid")


async def test_what_a_person_could_be_known_by_is_masked_for_who_may_not_see_it(
    client: httpx2.AsyncClient, store: EventStore
) -> None:
    plain = bearer((await key_for(store, Scope.ADMIN))[1])
    seen, masked = await client.get("/dead-letters"), await client.get("/dead-letters", headers=plain)
    assert CANARY in seen.text
    assert CANARY not in masked.text
    (event, shown) = (response.json()["dead_letters"][0] for response in (seen, masked))
    assert shown["event"]["event_id"] == event["event"]["event_id"]
    assert (shown["error"], shown["error_class"]) == ("***", "ValueError")


async def test_a_redrive_is_counted_then_done_as_a_job(
    client: httpx2.AsyncClient, store: EventStore, accounts: Accounts, launcher: InlineLauncher
) -> None:
    counted = await client.post("/dead-letters/redrive", json={**ALL, "dry_run": True})
    assert counted.status_code == 200, counted.text
    assert counted.json() | {"message": ""} == {
        "consumer_group": "accounts", "status": "counted", "aggregates": 3, "letters": 6,
        "message": "", "dagster_run_id": None,
    }  # fmt: skip
    assert not launcher.runs
    accounts.cured = True
    started = await client.post("/dead-letters/redrive", json=ALL, headers={"Idempotency-Key": "once"})
    assert started.status_code == 202, started.text
    assert started.json()["letters"] == 6
    again = await client.post("/dead-letters/redrive", json=ALL, headers={"Idempotency-Key": "once"})
    assert again.json() == started.json()
    assert len(launcher.runs) == 1
    await ended(launcher, started.json()["dagster_run_id"])
    assert await letters(store, "accounts") == 0
    assert [event.event_version for event in accounts.events if event.aggregate_id == "user-0"] == [1, 2]
    nothing = await client.post("/dead-letters/redrive", json=ALL)
    assert (nothing.status_code, nothing.json()["status"]) == (200, "nothing to do")
    (redrive,) = [act for act in await DeadLetterQueue(store).actions() if act["action"] == "redrive"]
    assert (redrive["why"], redrive["outcome"]["letters"]) == (ALL["reason"], 6)


async def test_a_redrive_takes_the_aggregates_of_the_letters_named(
    client: httpx2.AsyncClient, store: EventStore, accounts: Accounts, launcher: InlineLauncher
) -> None:
    accounts.cured = True
    rows = (await client.get("/dead-letters?consumer_group=accounts")).json()["dead_letters"]
    body = {"consumer_group": "accounts", "ids": [rows[1]["id"], rows[4]["id"]]}
    started = await client.post("/dead-letters/redrive", json=body)
    assert (started.json()["aggregates"], started.json()["letters"]) == (2, 4)
    await ended(launcher, started.json()["dagster_run_id"])
    left = (await client.get("/dead-letters?consumer_group=accounts")).json()["dead_letters"]
    assert {row["event"]["aggregate_id"] for row in left} == {"user-1"}


async def test_a_discard_gives_up_what_failed_and_what_is_behind_flows(
    client: httpx2.AsyncClient, store: EventStore, accounts: Accounts, launcher: InlineLauncher
) -> None:
    rows = (await client.get("/dead-letters?consumer_group=accounts")).json()["dead_letters"]
    body = {"consumer_group": "accounts", "ids": [rows[0]["id"], rows[3]["id"]], "reason": "a test account"}
    counted = (await client.post("/dead-letters/discard", json={**body, "dry_run": True})).json()
    assert (counted["status"], counted["letters"], counted["behind"]) == ("counted", 1, 2)
    assert await letters(store, "accounts") == 6, "a count changes nothing"
    done = (await client.post("/dead-letters/discard", json=body)).json()
    assert (done["status"], done["letters"], done["released"], done["behind"]) == ("discarded", 1, 0, 2)
    await ended(launcher, done["dagster_run_id"])
    assert [(event.aggregate_id, event.event_version) for event in accounts.events] == [("user-0", 2)]
    acts = await DeadLetterQueue(store).actions()
    discard = next(act for act in acts if act["action"] == "discard")
    assert discard["why"] == "a test account"
    assert discard["outcome"]["discarded"]["count"] == 1
    assert discard["by"].startswith("key:")


async def test_a_whole_queue_is_discarded_without_any_job(
    client: httpx2.AsyncClient, store: EventStore, launcher: InlineLauncher
) -> None:
    body = {"consumer_group": "others", "everything": True, "reason": "not needed", "whole_queue": True}
    some = (await client.post("/dead-letters/discard", json={**body, "limit": 2})).json()
    assert (some["letters"], some["released"], some["behind"]) == (4, 2, 0)
    rest = (await client.post("/dead-letters/discard", json=body)).json()
    assert (rest["letters"], rest["released"], rest["dagster_run_id"]) == (2, 1, None)
    assert await letters(store, "others") == 0
    assert not launcher.runs


async def test_nothing_is_done_that_could_not_be_finished(
    client: httpx2.AsyncClient, store: EventStore, launcher: InlineLauncher
) -> None:
    strangers = {"consumer_group": "others", "everything": True, "reason": "no handler here"}
    for path in ("redrive", "discard"):
        assert_problem(await client.post(f"/dead-letters/{path}", json=strangers), 422, "invalid")
    async with store.storage.lease("redrive/accounts"):
        for path in ("redrive", "discard"):
            assert_problem(await client.post(f"/dead-letters/{path}", json=ALL), 409, "conflict")
    launcher.refuses = True
    assert_problem(await client.post("/dead-letters/redrive", json=ALL), 503, "unavailable")
    assert await letters(store) == 12
    assert not launcher.runs


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"consumer_group": "accounts"},
        {"consumer_group": "accounts", "everything": True, "event_type": "user.migrated"},
        {"consumer_group": "accounts", "ids": []},
        {"consumer_group": "accounts", "ids": ["AAAA"]},
        {"consumer_group": "accounts", "ids": ["b3RoZXJzH3VzZXItMB8wMDAwMDAwMDAwMDAwMDAwMDAwMQ"]},
        {"consumer_group": "accounts", "everything": True, "surplus": 1},
    ],
)
async def test_a_request_that_does_not_say_which_is_refused(
    client: httpx2.AsyncClient, body: dict[str, object]
) -> None:
    assert_problem(await client.post("/dead-letters/redrive", json=body), 422, "invalid")
    assert_problem(await client.post("/dead-letters/discard", json={**body, "reason": "r"}), 422, "invalid")


async def test_a_discard_needs_a_reason(client: httpx2.AsyncClient) -> None:
    for reason in ({}, {"reason": ""}, {"reason": "  "}):
        body = {"consumer_group": "accounts", "everything": True, **reason}
        assert_problem(await client.post("/dead-letters/discard", json=body), 422, "invalid")


async def test_consumers_are_told_with_lag_state_and_what_is_parked(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = (await client.get("/consumers")).json()
    rows = {row["name"]: row for row in told["consumers"]}
    assert rows["accounts"] | {"seconds": 0.0} == {
        "kind": "group", "name": "accounts", "state": "caught-up", "position": rows["accounts"]["position"],
        "events": 0, "seconds": 0.0, "in_hand": 0, "parked": 3, "circuit": "closed",
    }  # fmt: skip
    assert rows["user-migrations.v1"]["state"] == "behind"
    assert told["kafka_groups"] == []
    monkeypatch.setattr("eventsourcing.lag.STALLED_S", 0.0)
    rows = {row["name"]: row for row in (await client.get("/consumers")).json()["consumers"]}
    assert rows["user-migrations.v1"]["state"] == "stalled"
