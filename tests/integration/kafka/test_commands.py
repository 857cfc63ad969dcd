"""`esm worker` over Kafka, and `esm bus audit`, as an operator runs them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess

import pytest

from eventsourcing import EventBusConfig, EventStore
from eventsourcing.relay import relay_position
from eventsourcing.storage.base import CHECKPOINTS
from eventsourcing.testing import a_migration
from tests.integration.kafka.lab import relayed
from tests.terminal import ESM, esm


@pytest.fixture
def environment(store_url: str, kafka: EventBusConfig) -> dict[str, str]:
    """What an operator sets."""
    return {
        **os.environ,
        "DATABASE_URL": store_url,
        "KAFKA_BOOTSTRAP_SERVERS": kafka.kafka_bootstrap_servers or "",
        "ESM_TOPIC_PREFIX": kafka.topic_prefix,
        "ESM_KAFKA_PARTITIONS": str(kafka.kafka_partitions),
        "COLUMNS": "160",
    }


async def test_the_worker_relays_and_the_audit_tells_what_is_missing(
    store: EventStore, environment: dict[str, str], kafka: EventBusConfig
) -> None:
    stored = await store.append_events(a_migration())
    command = [*ESM, "worker"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as worker:  # noqa: ASYNC220 - starting takes a moment
        await relayed(store)
        worker.send_signal(signal.SIGTERM)
        _, log = await asyncio.to_thread(worker.communicate, timeout=60)
    assert worker.returncode == 0, log

    complete = await asyncio.to_thread(esm, "bus", "audit", settings=environment)
    assert (complete.returncode, "user.migrated" in complete.stdout) == (0, True), complete.stderr

    await store.append_events(a_migration("migration-unseen"))
    async with store.storage.transaction() as transaction:  # the relay is made to skip them
        await transaction.put(CHECKPOINTS, "relay/relay", {"position": await store.horizon()})
    missing = await asyncio.to_thread(
        esm, "bus", "audit", "--after", stored[-1].position, settings=environment
    )
    assert missing.returncode == 1
    assert f"{kafka.topic_prefix}.migration.started: missing {stored[-1].position + 1}" in missing.stdout
    assert await relay_position(store.storage) > stored[-1].position


async def test_a_wrong_kafka_option_ends_the_worker_with_one_line(environment: dict[str, str]) -> None:
    done = await asyncio.to_thread(
        esm, "worker", settings=environment | {"ESM_KAFKA_OPTION_LINGER_MILLIS": "5"}
    )

    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        'esm: Kafka: No such configuration property: "linger.millis"'
    )


async def test_without_kafka_there_is_nothing_to_audit(environment: dict[str, str]) -> None:
    environment.pop("KAFKA_BOOTSTRAP_SERVERS")

    done = await asyncio.to_thread(esm, "bus", "audit", settings=environment)

    assert (done.returncode, done.stderr.strip()) == (
        1,
        "esm: KAFKA_BOOTSTRAP_SERVERS is not set: the bus runs over the store",
    )
