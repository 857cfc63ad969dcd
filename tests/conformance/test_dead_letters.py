"""What is given up, over every transport: exactly that is parked, and a re-drive brings it back in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from eventsourcing import (
    BaseEvent,
    BusyError,
    ConfigurationError,
    DeadLetterQueue,
    EventBus,
    EventBusConfig,
    EventStore,
    EventType,
    InvalidEventError,
    NotFoundError,
    ParkedSelection,
    PermanentError,
    upcasting,
)
from eventsourcing.dead_letters import dead_letters, lock_parked, parked_aggregates
from eventsourcing.storage.memory import InMemoryStorage
from eventsourcing.testing import InMemoryHandler
from eventsourcing.transport.base import Subscription
from eventsourcing.transport.memory import InMemoryTransport
from eventsourcing.upcasting import Lineage
from tests.conformance.test_bus import CONFIG, Transported, settled, transported, user, versions
from tests.waiting import until

__all__ = ["transported"]

ALL = ParkedSelection("all")


class Patient(InMemoryHandler):
    """Refuses poison until it is cured, each time with the error that `error` makes."""

    def __init__(self, error: Callable[[], Exception] = lambda: ValueError("poison")) -> None:
        super().__init__(fails=lambda event: None if self.cured or not poisoned(event) else error())
        self.cured = False


def poisoned(event: BaseEvent) -> bool:
    return str(event.data["username"]).startswith("poison")


async def parked(transported: Transported, handler: InMemoryHandler, events: list[BaseEvent]) -> None:
    """Deliver events to the group `all` until all of them are handled or stand in the queue."""
    bus = transported.bus()
    await bus.subscribe([], handler, consumer_group="all")
    async with bus:
        await bus.publish_batch(events)
        await quiet(transported, handler, len(events))


async def quiet(transported: Transported, handler: InMemoryHandler, count: int) -> None:
    """Wait until so many events are handled or stand in the queue."""

    async def all_there() -> bool:
        return len(handler.events) + await letters(transported) >= count

    await until(all_there)


async def letters(transported: Transported) -> int:
    groups = await DeadLetterQueue(transported.store).groups()
    return groups["all"]["letters"] if groups else 0


def queue(transported: Transported, config: EventBusConfig = CONFIG) -> DeadLetterQueue:
    return DeadLetterQueue(transported.store, config)


async def test_one_percent_of_poison_parks_exactly_its_aggregates_and_a_redrive_ends_right(
    transported: Transported,
) -> None:
    aggregates, rounds = 2_000, 5
    sick = {f"user-{number}" for number in range(0, aggregates, 20)}
    handler = Patient()
    bus = transported.bus()
    await bus.subscribe([], handler, consumer_group="all")
    async with bus:
        for round_ in range(rounds):
            await bus.publish_batch(
                [
                    user(n, "poison" if round_ == n % rounds and n % 20 == 0 else f"name{round_}")
                    for n in range(aggregates)
                ]
            )
        await quiet(transported, handler, aggregates * rounds)
        assert await parked_aggregates(transported.store.storage, "all") == sick
        done = versions(handler.events)
        assert all(done[f"user-{n}"] == [1, 2, 3, 4, 5] for n in range(aggregates) if n % 20)
        failed = await dead_letters(transported.store.storage, "all", limit=10_000)
        assert sum(row["status"] == "failed" for row in failed) == len(sick) == 100

        handler.cured = True
        result = await queue(transported).redrive(ALL, [handler], by="ann", why="fixed")

    assert (result.released, result.failed, result.stopped) == (100, 0, None)
    assert await letters(transported) == 0
    assert await parked_aggregates(transported.store.storage, "all") == set()
    assert versions(handler.events) == {f"user-{n}": [1, 2, 3, 4, 5] for n in range(aggregates)}


async def test_what_arrives_during_a_redrive_neither_overtakes_nor_is_lost(transported: Transported) -> None:
    aggregates, rounds = 10, 40
    handler = Patient()
    bus = transported.bus()
    await bus.subscribe([], handler, consumer_group="all")
    async with bus:
        await bus.publish_batch([user(n, "poison") for n in range(aggregates)])
        await quiet(transported, handler, aggregates)
        handler.cured = True

        async def publish() -> None:
            for _ in range(rounds):
                await bus.publish_batch([user(n) for n in range(aggregates)])
                await asyncio.sleep(0.01)

        async def redrive() -> None:
            for _ in range(1000):
                await queue(transported).redrive(ALL, [handler], by="ann", why="fixed")
                await asyncio.sleep(0.005)
                if not await parked_aggregates(transported.store.storage, "all"):
                    return

        await asyncio.gather(publish(), redrive())
        await until(lambda: len(handler.events) >= aggregates * (rounds + 1))
        await settled(handler)

    assert versions(handler.events) == {f"user-{n}": list(range(1, rounds + 2)) for n in range(aggregates)}


async def test_the_table_stays_without_the_topic(transported: Transported) -> None:
    config = transported.config.model_copy(update={"retry_attempts": 0, "enable_dead_letter_queue": False})
    bus = EventBus(config, store=transported.store, use_memory=transported.use_memory)
    handler = Patient()
    await bus.subscribe([], handler, consumer_group="all")
    async with bus:
        await bus.publish_batch([user(1, "poison"), user(1)])
        await quiet(transported, handler, 2)

    assert len(await queue(transported).letters("all", "user-1")) == 2


async def test_an_error_that_trying_again_cannot_help_parks_at_once(transported: Transported) -> None:
    handler = Patient(lambda: PermanentError("never"))
    await parked(transported, handler, [user(1, "poison"), user(1, "behind"), user(2)])

    first, second = await queue(transported).letters("all", "user-1")
    assert (first["attempts"], first["status"], second["status"]) == (1, "failed", "waiting")
    assert handler.calls == 2


async def test_a_letter_says_what_happened_and_holds_no_secret(transported: Transported) -> None:
    event = user(1, "poison")
    event.data["source_data"] = {"password": "hunter2-of-ann"}

    def error() -> Exception:
        return RuntimeError(f"cannot store hunter2-of-ann at postgresql://u:pw@host/db {'x' * 5000}")

    await parked(transported, Patient(error), [event])
    (row,) = await queue(transported).letters("all", "user-1")

    assert row["error"].startswith("RuntimeError: cannot store *** at postgresql://u:***@host/db xxx")
    assert len(row["error"]) <= 1024 + len("RuntimeError: ")
    assert len(row["stack"].encode()) <= 8 * 1024
    assert "RuntimeError" in row["stack"]
    assert "hunter2" not in row["stack"] + row["error"]
    assert (row["error_class"], row["handler"], row["redrives"]) == ("RuntimeError", "Patient", 0)
    assert row["first_failed_at"] <= row["last_failed_at"]


async def test_a_redrive_that_fails_again_stays_parked_and_counts(transported: Transported) -> None:
    handler = Patient()
    await parked(transported, handler, [user(1, "poison"), user(1, "behind")])
    (before, _) = await queue(transported).letters("all", "user-1")

    result = await queue(transported).redrive(ALL, [handler], by="ann", why="fixed")
    (after, behind) = await queue(transported).letters("all", "user-1")

    assert (result.released, result.failed, result.letters) == (0, 1, 0)
    assert "poison" in result.errors["user-1"]
    assert (after["redrives"], after["attempts"]) == (1, 2 * before["attempts"])
    assert after["first_failed_at"] == before["first_failed_at"] < after["last_failed_at"]
    assert after["fingerprint"] == before["fingerprint"]
    assert (behind["status"], behind["redrives"]) == ("waiting", 0)


async def test_a_selection_takes_what_fits_and_a_cap_ends_it_and_the_rest_goes_on(
    transported: Transported,
) -> None:
    errors = {"poison-a": ValueError("a"), "poison-b": KeyError("b")}
    sick = True
    handler = InMemoryHandler(fails=lambda event: errors.get(str(event.data["username"])) if sick else None)
    poison: list[BaseEvent] = [
        user(1, "poison-a"),
        user(2, "poison-b"),
        user(3, "poison-a"),
        user(1),
        user(3),
    ]
    await parked(transported, handler, poison)
    sick = False
    dlq = queue(transported)
    (value_error,) = {row["fingerprint"] for row in await dlq.preview(ALL) if "a" in row["error"][-3:]}
    chosen = ParkedSelection("all", fingerprint=value_error)

    previewed = {row["aggregate_id"]: row["letters"] for row in await dlq.preview(chosen)}
    capped = await dlq.redrive(chosen, [handler], by="ann", why="fixed", cap=3)
    rest = await dlq.redrive(chosen, [handler], by="ann", why="fixed")
    nothing = await dlq.redrive(
        ParkedSelection("all", event_type="admin.migrated"), [handler], by="ann", why="fixed"
    )
    last = await dlq.redrive(ParkedSelection("all", aggregate_id="user-2"), [handler], by="ann", why="fixed")

    assert previewed == {"user-1": 2, "user-3": 2}
    assert (capped.letters, capped.stopped) == (3, "the cap is reached")
    assert (rest.letters, rest.stopped) == (1, None)
    assert (nothing.letters, nothing.released) == (0, 0)
    assert (last.letters, last.released) == (1, 1)
    assert versions(handler.events) == {"user-1": [1, 2], "user-2": [1], "user-3": [1, 2]}


async def test_a_letter_reads_at_the_version_that_the_code_is_at(
    transported: Transported, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = Patient()
    await parked(transported, handler, [user(1, "poison")])
    handler.cured = True
    kind = str(EventType.USER_MIGRATED)
    fixed = Lineage(kind, (lambda old: {**old, "username": "ann"},))
    monkeypatch.setitem(upcasting._lineages, kind, fixed)
    upcasting.VERSIONED.add(kind)
    try:
        await queue(transported).redrive(ALL, [handler], by="ann", why="fixed")
    finally:
        upcasting.VERSIONED.discard(kind)

    assert [event.data["username"] for event in handler.events] == ["ann"]


async def test_an_outage_ends_a_redrive_and_changes_no_letter(transported: Transported) -> None:
    handler = Patient()
    await parked(transported, handler, [user(1, "poison")])
    before = await queue(transported).letters("all", "user-1")
    away = InMemoryHandler(fails=lambda _: ConnectionError("away"))

    result = await queue(transported).redrive(ALL, [away], by="ann", why="fixed")

    assert result.stopped is not None
    assert "away" in result.stopped
    assert await queue(transported).letters("all", "user-1") == before


async def test_discarding_the_failed_event_lets_what_is_behind_it_flow(transported: Transported) -> None:
    handler = Patient()
    await parked(transported, handler, [user(1, "poison"), user(1), user(1)])

    result = await queue(transported).discard("all", "user-1", [handler], by="ann", why="a test account")

    assert (result.letters, result.released) == (2, 1)
    assert versions(handler.events) == {"user-1": [2, 3]}
    (entry,) = await queue(transported).actions()
    assert (entry["by"], entry["action"], entry["why"]) == ("ann", "discard", "a test account")
    assert entry["outcome"]["discarded"]["events"][0]["event_version"] == 1


async def test_discarding_a_whole_queue_lets_what_comes_next_flow(transported: Transported) -> None:
    handler = Patient()
    bus = transported.bus()
    await bus.subscribe([], handler, consumer_group="all")
    async with bus:
        await bus.publish_batch([user(1, "poison"), user(1), user(1)])
        await quiet(transported, handler, 3)
        await queue(transported).discard("all", "user-1", by="ann", why="a test account", whole_queue=True)
        await bus.publish(user(1, "next"))
        await until(lambda: len(handler.events) == 1)

    assert versions(handler.events) == {"user-1": [4]}
    (entry,) = await queue(transported).actions()
    assert entry["outcome"]["discarded"]["count"] == 3


async def test_what_cannot_be_done_is_refused_and_changes_nothing(transported: Transported) -> None:
    handler = Patient()
    await parked(transported, handler, [user(1, "poison"), user(1)])
    dlq, before = queue(transported), await queue(transported).letters("all", "user-1")

    with pytest.raises(ConfigurationError, match="no handler"):
        await dlq.redrive(ALL, [], by="ann", why="fixed")
    with pytest.raises(ConfigurationError, match="no handler"):
        await dlq.discard("all", "user-1", by="ann", why="w")
    with pytest.raises(InvalidEventError, match="why"):
        await dlq.redrive(ALL, [handler], by="ann", why=" ")
    with pytest.raises(NotFoundError, match="user-9"):
        await dlq.discard("all", "user-9", [handler], by="ann", why="w")
    async with transported.store.storage.lease("redrive/all") as ours:
        assert ours
        with pytest.raises(BusyError, match="another process"):
            await dlq.redrive(ALL, [handler], by="ann", why="fixed")

    assert await dlq.letters("all", "user-1") == before
    assert await dlq.actions() == []


async def test_every_action_is_in_the_audit_newest_first(transported: Transported) -> None:
    handler = Patient()
    await parked(transported, handler, [user(1, "poison")])
    await queue(transported).redrive(ALL, [handler], by="ann", why="a try", cap=7)
    handler.cured = True
    await queue(transported).redrive(ALL, [handler], by="bob", why="fixed")

    second, first = await queue(transported).actions()
    assert (first["by"], first["what"]["cap"], first["outcome"]["failed"]) == ("ann", 7, 1)
    assert (second["by"], second["why"], second["outcome"]["released"]) == ("bob", "fixed", 1)


async def test_events_without_a_place_in_a_store_are_parked_one_by_one() -> None:
    """A transport without a store: its drafts have no position, and none may take another's place."""
    storage = InMemoryStorage()
    transport = InMemoryTransport(CONFIG, storage)
    handler = Patient()
    await transport.subscribe(Subscription(handler, frozenset(), "all", "now"))
    await transport.publish([user(1, "poison"), user(1, "second"), user(1, "third")])
    handler.cured = True
    await DeadLetterQueue(EventStore(storage=storage), CONFIG).redrive(ALL, [handler], by="ann", why="fixed")

    assert [event.data["username"] for event in handler.events] == ["poison", "second", "third"]


async def test_planted_a_consumer_that_ignores_the_release_is_noticed(transported: Transported) -> None:
    """The check behind every release: an aggregate whose row is gone is not reported as parked."""
    handler = Patient()
    await parked(transported, handler, [user(1, "poison"), user(2, "poison")])
    handler.cured = True
    await queue(transported).redrive(
        ParkedSelection("all", aggregate_id="user-1"), [handler], by="ann", why="fixed"
    )

    async with transported.store.storage.transaction() as transaction:
        assert await lock_parked(transaction, "all", ["user-1", "user-2"]) == {"user-2"}
