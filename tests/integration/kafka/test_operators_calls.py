"""The operators' calls over a bus on Kafka: what its groups gave up, and how far behind they are."""

from __future__ import annotations

import httpx2
import pytest

from api import event_service
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
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.testing import InMemoryHandler
from tests.api.conftest import InlineLauncher, free_port, serving
from tests.waiting import until


def moved(number: int) -> UserMigratedEvent:
    return UserMigratedEvent(user_id=f"user-{number}", username="u", source_data={}, target_data={})


async def test_what_a_group_on_kafka_gave_up_is_listed_counted_and_redriven(
    store_url: str, kafka: EventBusConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sick = InMemoryHandler(["user.migrated"], fails=lambda _: ValueError("poison"))
    monkeypatch.setattr(registry, "_handlers", {})
    register_handler(InMemoryHandler(["user.migrated"]), "counted")  # the one that was mended
    config = kafka.model_copy(update={"retry_attempts": 0})
    async with EventStore(storage=PostgresStorage(store_url)) as store:
        async with EventBus(config, store=store) as bus:
            await bus.subscribe(["user.migrated"], sick, consumer_group="counted")
            await store.append_events([moved(number) for number in range(3)])

            async def given_up() -> bool:
                groups = await DeadLetterQueue(store).groups()
                return bool(groups) and groups["counted"]["letters"] == 3

            await until(given_up)
        launcher = InlineLauncher(store_url)
        settings = Settings(
            database_url=store_url,
            kafka_bootstrap_servers=kafka.kafka_bootstrap_servers,
            topic_prefix=kafka.topic_prefix,
        )
        async with serving(event_service.create_app(settings, launcher)) as client:

            async def caught_up() -> bool:
                (group,) = (await client.get("/consumers")).json()["kafka_groups"]
                topics = {f"{kafka.topic_prefix}.user.migrated": 0}
                wanted = {
                    "name": "counted",
                    "state": "caught-up",
                    "messages": 0,
                    "topics": topics,
                    "parked": 3,
                }
                return bool(group == wanted)

            await until(caught_up)
            await redriven(client, launcher)
        away = settings.model_copy(update={"kafka_bootstrap_servers": f"127.0.0.1:{free_port()}"})
        async with serving(event_service.create_app(away, InlineLauncher(store_url))) as client:
            (group,) = (await client.get("/consumers")).json()["kafka_groups"]
            assert (group["state"], group["messages"]) == ("unknown", None)


async def redriven(client: httpx2.AsyncClient, launcher: InlineLauncher) -> None:
    letters = (await client.get("/dead-letters?consumer_group=counted")).json()["dead_letters"]
    assert [row["status"] for row in letters] == ["failed"] * 3
    body = {"consumer_group": "counted", "ids": [row["id"] for row in letters]}
    started = (await client.post("/dead-letters/redrive", json=body)).json()
    assert (started["aggregates"], started["letters"]) == (3, 3)
    await launcher.runs[started["dagster_run_id"]]
    assert (await client.get("/dead-letters")).json() == {"dead_letters": []}
