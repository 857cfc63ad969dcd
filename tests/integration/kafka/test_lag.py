"""How far behind groups on Kafka are: as the broker has it, and as `esm consumers` shows it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from eventsourcing import EventBus, EventBusConfig, EventStore, UserMigratedEvent
from eventsourcing.errors import UnavailableError
from eventsourcing.testing import InMemoryHandler
from eventsourcing.transport.kafka_lag import KafkaLag, kafka_lags
from tests.api.conftest import free_port
from tests.integration.kafka.lab import relayed
from tests.waiting import until


def moved(number: int) -> UserMigratedEvent:
    return UserMigratedEvent(user_id=f"user-{number}", username="u", source_data={}, target_data={})


async def test_a_group_that_stopped_is_behind_by_what_came_since(
    store: EventStore, kafka: EventBusConfig, store_url: str
) -> None:
    topic = f"{kafka.topic_prefix}.user.migrated"
    handler = InMemoryHandler(["user.migrated"])
    async with EventBus(kafka, store=store) as bus:
        await bus.subscribe(["user.migrated"], handler, consumer_group="counted")
        await store.append_events([moved(number) for number in range(5)])
        await until(lambda: len(handler.events) == 5)

        async def caught_up() -> bool:
            return await kafka_lags(kafka, store.storage) == [KafkaLag("counted", topic, 0)]

        await until(caught_up)
    async with EventBus(kafka, store=store):  # only the relay
        await store.append_events([moved(number) for number in range(7)])
        await relayed(store)

    async def seven_behind() -> bool:
        return await kafka_lags(kafka, store.storage) == [KafkaLag("counted", topic, 7)]

    await until(seven_behind)
    shown = await asyncio.to_thread(consumers, kafka, store_url)
    assert {"kind": "kafka-group", "name": "counted", "topic": topic, "messages": 7} in shown


def consumers(kafka: EventBusConfig, database_url: str) -> list[dict[str, Any]]:
    """What `esm consumers --json` prints."""
    environment = {
        **os.environ,
        "DATABASE_URL": database_url,
        "KAFKA_BOOTSTRAP_SERVERS": kafka.kafka_bootstrap_servers or "",
        "ESM_TOPIC_PREFIX": kafka.topic_prefix,
    }
    command = [sys.executable, "-m", "api.cli", "consumers", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


async def test_without_a_broker_lags_are_unavailable_and_the_stores_are_shown_all_the_same(
    store: EventStore, kafka: EventBusConfig, store_url: str
) -> None:
    async with EventBus(kafka, store=store) as bus:
        await bus.subscribe([], InMemoryHandler(), consumer_group="counted")
        await store.append_event(moved(1))
        await relayed(store)
    away = kafka.model_copy(update={"kafka_bootstrap_servers": f"127.0.0.1:{free_port()}"})
    with pytest.raises(UnavailableError):
        await kafka_lags(away, store.storage)
    shown = await asyncio.to_thread(consumers, away, store_url)
    assert {row["kind"] for row in shown} == {"read-model", "relay"}
