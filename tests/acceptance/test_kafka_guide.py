"""The guide for outside consumers: its Python block, run as it stands, understands what we publish."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from eventsourcing import EventBus, EventBusConfig, EventStore, UserMigratedEvent
from eventsourcing.catalogue import UserRolledBackEvent
from eventsourcing.events import BaseEvent
from eventsourcing.transport.kafka_message import encode_message

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "consume-from-kafka.md"


def block() -> str:
    (found,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.S)
    return str(found)


async def test_a_consumer_without_our_code_reads_everything_in_order(kafka: EventBusConfig) -> None:
    events: list[BaseEvent] = [
        event for number in range(20) for event in (moved(number, "first"), moved(number, "second"))
    ]
    events += [undone(number) for number in range(20)] + [moved(number, "third") for number in range(20)]
    async with EventStore(use_memory=True) as store, EventBus(kafka, store=store):
        stored = await store.append_events(events)
        lines = await asyncio.to_thread(read, kafka, len(events))

    found = [re.fullmatch(r"(\d+) (\S+) (\S+) version (\d+) (\w+)", line.strip()) for line in lines]
    read_back = [match.groups() for match in found if match]
    expected = [
        (str(e.position), str(e.event_type), e.aggregate_id, str(e.event_version), e.data["username"])
        for e in stored
    ]
    assert sorted(read_back) == sorted(expected)
    for number in range(20):
        versions = [version for _, _, key, version, _ in read_back if key == f"user-{number}"]
        assert versions == ["1", "2", "3", "4"]


def read(kafka: EventBusConfig, count: int) -> list[str]:
    """The first lines that the guide's program prints."""
    environment = {
        **os.environ,
        "KAFKA_BOOTSTRAP_SERVERS": kafka.kafka_bootstrap_servers or "",
        "PREFIX": kafka.topic_prefix,
    }
    with subprocess.Popen(
        [sys.executable, "-c", block()], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(count)]
        process.kill()
    return lines


def moved(number: int, name: str) -> UserMigratedEvent:
    return UserMigratedEvent(user_id=f"user-{number}", username=name, source_data={}, target_data={})


def undone(number: int) -> UserRolledBackEvent:
    return UserRolledBackEvent(
        user_id=f"user-{number}", username="undone", rollback_id="r", migration_id="m", action="removed"
    )


def test_the_guide_names_every_header_and_no_other() -> None:
    table = GUIDE.read_text("utf-8").split("## Headers")[1].split("## What")[0]
    documented = set(re.findall(r"`((?:ce_|es-)[\w-]+|content-type|traceparent)`", table))
    parent = moved(1, "ann")
    parent.metadata = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    sent = asyncio.run(stored_once(moved(2, "bob").follow(parent), parent))

    assert documented == sent


async def stored_once(child: UserMigratedEvent, parent: UserMigratedEvent) -> set[str]:
    child.metadata = parent.metadata
    async with EventStore(use_memory=True) as store:
        recorded = await store.append_event(child)
    message = encode_message("migration", recorded, {})
    json.loads(message.value)
    return {name for name, _ in message.headers}
