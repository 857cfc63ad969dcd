"""Kafka with users, passwords and rights, for real: who may not is told what, where and as whom; nothing is
lost by it, and what is allowed afterwards goes on by itself."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclBindingFilter, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType

from deploy.kafka.broker import Broker
from eventsourcing import EventBus, EventBusConfig, EventStore, UserMigratedEvent
from eventsourcing.dead_letters import parked_aggregates
from eventsourcing.errors import ConfigurationError
from eventsourcing.events import BaseEvent
from eventsourcing.relay import RELAY
from eventsourcing.testing import InMemoryHandler
from eventsourcing.transport.kafka_options import Options
from tests.brokers import secured_broker
from tests.certificates import Authority, authority
from tests.waiting import until

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guides" / "tls.md"
USER, PASSWORD, WRONG = "migration", "right-canary-71", "wrong-canary-72"


@dataclass(frozen=True)
class Secured:
    """A broker that lets users in by password, and an administrator's client."""

    broker: Broker
    address: str
    authority: Authority
    admin: AdminClient

    def bus(self, password: str = PASSWORD) -> EventBusConfig:
        """A bus of the user under a prefix of its own, to which the guide gives rights."""
        options: Options = {
            "security.protocol": "SASL_SSL",
            "ssl.ca.location": str(self.authority.certificate),
            "sasl.mechanisms": "SCRAM-SHA-512",
            "sasl.username": USER,
            "sasl.password": password,
        }
        prefix = f"sasl-{uuid4().hex[:12]}"
        (block,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.S)
        given = {"KAFKA_ADMIN": self.broker.address, "KAFKA_USER": USER, "ESM_TOPIC_PREFIX": prefix}
        subprocess.run([sys.executable, "-c", block], env={**os.environ, **given}, check=True)
        return EventBusConfig(
            kafka_bootstrap_servers=self.address,
            topic_prefix=prefix,
            kafka_partitions=1,
            kafka_options=options,
            retry_attempts=0,
        )

    @contextmanager
    def denied(self, prefix: str, operation: AclOperation) -> Iterator[None]:
        """Meanwhile the user may not do this with topics that begin so."""
        where = (ResourceType.TOPIC, prefix, ResourcePatternType.PREFIXED, f"User:{USER}", "*", operation)
        binding = AclBinding(*where, AclPermissionType.DENY)
        same = AclBindingFilter(*where, AclPermissionType.DENY)
        for made in self.admin.create_acls([binding]).values():
            made.result(timeout=10)
        while not self.admin.describe_acls(same).result(timeout=10):
            time.sleep(0.02)  # the broker hears of it a moment after its controller
        yield
        for removed in self.admin.delete_acls([same]).values():
            removed.result(timeout=10)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("sasl")
    trusted = authority(folder)
    with secured_broker(folder, trusted, protocol="SASL_SSL", users={USER: PASSWORD}) as (broker, address):
        yield Secured(
            broker, address, trusted, AdminClient({"bootstrap.servers": broker.address, "log_level": 0})
        )


@pytest.fixture(autouse=True)
def no_password_in_a_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    assert "canary" not in caplog.text


def moved() -> UserMigratedEvent:
    return UserMigratedEvent(user_id="u", username="u", source_data={}, target_data={})


class Refusing(InMemoryHandler):
    """A handler that no event suits."""

    async def handle(self, event: BaseEvent) -> None:  # noqa: ARG002 - whatever it is
        raise ValueError("poison")


async def test_events_and_dead_letters_travel_with_the_rights_of_the_guide(secured: Secured) -> None:
    config, handler = secured.bus(), InMemoryHandler(["user.migrated"])
    async with EventStore(use_memory=True) as store, EventBus(config, store=store) as bus:
        await bus.subscribe([], handler, consumer_group="mail")
        await bus.subscribe([], Refusing(["user.migrated"]), consumer_group="poison")
        await store.append_event(moved())
        await until(lambda: len(handler.events) == 1)

        async def parked() -> bool:
            return await parked_aggregates(store.storage, "poison") == {"u"}

        await until(parked)
    reader = Consumer(
        {
            "bootstrap.servers": secured.broker.address,
            "group.id": "check",
            "auto.offset.reset": "earliest",
        }
    )
    reader.subscribe([f"{config.topic_prefix}.dlq.poison"])
    letter = reader.poll(20)
    reader.close()
    assert letter is not None
    assert letter.error() is None
    assert letter.key() == b"u"


async def test_a_wrong_password_ends_the_start_and_says_whose(
    secured: Secured, caplog: pytest.LogCaptureFixture
) -> None:
    async with EventStore(use_memory=True) as store:
        with pytest.raises(
            ConfigurationError, match=r"'migration' is refused: .*SASL authentication"
        ) as told:
            await EventBus(secured.bus(WRONG), store=store).start()
    assert secured.address in str(told.value)
    assert WRONG not in str(told.value) + caplog.text


def test_the_doctor_says_that_the_password_is_wrong(secured: Secured, store_url: str, tmp_path: Path) -> None:
    config = secured.bus(WRONG)
    options = {
        f"ESM_KAFKA_OPTION_{name.replace('.', '_').upper()}": str(value)
        for name, value in config.kafka_options.items()
    }
    settings = {"DATABASE_URL": store_url, "KAFKA_BOOTSTRAP_SERVERS": secured.address}
    done = subprocess.run(
        [sys.executable, "-m", "api.cli", "doctor", "--json"],
        env={**os.environ, **options, **settings, "ESM_DATA_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    (kafka,) = (line for line in map(json.loads, done.stdout.splitlines()) if line["check"] == "kafka")
    assert (done.returncode, kafka["status"]) == (1, "failed"), done.stderr
    assert "user 'migration' is refused" in kafka["says"]
    assert WRONG not in done.stdout + done.stderr


@pytest.mark.parametrize("where", [".user.migrated", "."], ids=["one topic", "all topics"])
async def test_a_relay_that_may_not_write_waits_for_the_right_and_parks_nothing(
    secured: Secured, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    config, handler = secured.bus(), InMemoryHandler(["user.migrated"])
    said = (
        f"{config.topic_prefix}.user.migrated: .*authorization failed|'migration' is refused: .*authorization"
    )
    async with EventStore(use_memory=True) as store, EventBus(config, store=store) as bus:
        await bus.subscribe([], handler, consumer_group="mail")
        with secured.denied(f"{config.topic_prefix}{where}", AclOperation.WRITE):
            await store.append_event(moved())
            await until(lambda: re.search(f"relay paused: .*({said})", caplog.text) is not None)
        assert await parked_aggregates(store.storage, RELAY) == set()
        await until(lambda: len(handler.events) == 1)


async def test_a_group_that_may_not_read_waits_for_the_right_and_parks_nothing(
    secured: Secured, caplog: pytest.LogCaptureFixture
) -> None:
    config, handler = secured.bus(), InMemoryHandler(["user.migrated"])
    topic = f"{config.topic_prefix}.user.migrated"
    async with EventStore(use_memory=True) as store, EventBus(config, store=store) as bus:
        with secured.denied(topic, AclOperation.READ):
            await bus.subscribe([], handler, consumer_group="mail")
            await store.append_event(moved())
            await until(
                lambda: re.search(f"group mail paused: .*{topic}.*authorization", caplog.text) is not None
            )
        assert await parked_aggregates(store.storage, "mail") == set()
        await until(lambda: len(handler.events) == 1)
