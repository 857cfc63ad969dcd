"""The transport over Kafka: one topic an event type, consumer groups, and the store as the source of order.

What the store recorded is published by the relay with the position, the version and the predecessors of
each event, from which consumers restore the order within each aggregate. A subscription without a group
follows the store itself: from now on, in its order. Without a store, events are produced and delivered as
given, outside every guarantee of order.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar
from uuid import uuid4

from eventsourcing.config import EventBusConfig
from eventsourcing.consumer import GroupConsumer
from eventsourcing.errors import ConfigurationError, InvalidEventError, UnavailableError
from eventsourcing.events import BaseEvent, RecordedEvent, registered_events
from eventsourcing.predecessors import Predecessors
from eventsourcing.storage.base import Storage
from eventsourcing.storage.memory import InMemoryStorage
from eventsourcing.supervision import supervise
from eventsourcing.transport.base import Receipt, Refused, Subscription
from eventsourcing.transport.kafka_consumer import KafkaGroup
from eventsourcing.transport.kafka_dead_letters import DeadLetterTopic
from eventsourcing.transport.kafka_message import OutgoingMessage, encode_message, topic_of
from eventsourcing.transport.kafka_options import check_options, producer_options
from eventsourcing.transport.kafka_producer import Batch, KafkaProducer
from eventsourcing.transport.kafka_topics import KafkaTopics

_log = logging.getLogger(__name__)

_GROUP = re.compile(r"[a-zA-Z0-9._-]{1,150}")


class KafkaTransport:
    """Producer, topics and groups of one process. Raises ConfigurationError for options that Kafka's
    client refuses; then nothing is connected."""

    relayed: ClassVar[bool] = True

    def __init__(self, config: EventBusConfig, storage: Storage | None) -> None:
        check_options(config)
        self._config, self._recorded = config, storage is not None
        self._storage: Storage = storage or InMemoryStorage()
        self._topics = KafkaTopics(config)
        self._producer = KafkaProducer(producer_options(config))
        self._dead_letters = KafkaProducer(producer_options(config))
        self._predecessors = Predecessors(self._storage)
        self._groups: dict[str, KafkaGroup] = {}
        self._followers: list[GroupConsumer] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._started = False

    async def start(self) -> None:
        """See Transport.start. A broker that is away is waited for; topics that are wrong are refused."""
        try:
            await self._topics.ensure(
                topic_of(self._config.topic_prefix, cls.declared_type) for cls in registered_events()
            )
        except UnavailableError as error:
            _log.warning("%s; delivery begins when it answers", error)
        self._started = True
        for name in self._groups:
            self._launch(name)
        for follower in self._followers:
            self._follow(follower)

    async def stop(self) -> None:
        """See Transport.stop. What was in hand is finished and committed, or comes again."""
        self._started = False
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._producer.close()
        await self._dead_letters.close()

    async def publish(self, events: Sequence[BaseEvent]) -> Receipt:
        """See Transport.publish."""
        messages: dict[int, OutgoingMessage] = {}
        refused: list[Refused] = []
        recorded = [event for event in events if isinstance(event, RecordedEvent)]
        before = iter(await self._predecessors.of(recorded) if self._recorded else ())
        for place, event in enumerate(events):
            predecessors = next(before, None) if isinstance(event, RecordedEvent) else None
            try:
                messages[place] = encode_message(self._config.topic_prefix, event, predecessors)
            except InvalidEventError as error:
                refused.append(Refused(event, str(error)))
        await self._topics.ensure(message.topic for message in messages.values())
        sent = list(messages)
        batch = await self._producer.queue(list(messages.values()))
        return _Sent(
            self._producer, batch, [events[place] for place in sent], list(messages.values()), refused
        )

    async def subscribe(self, subscription: Subscription) -> None:
        """See Transport.subscribe. Raises ConfigurationError for a group whose name no topic can have."""
        if subscription.group is None and self._recorded:
            now = await self._storage.horizon()
            follower = GroupConsumer(self._storage, self._config, [subscription], position=now)
            self._followers.append(follower)
            if self._started:
                self._follow(follower)
            return
        name = subscription.group or f"{self._config.topic_prefix}.private.{uuid4().hex}"
        if not _GROUP.fullmatch(name):
            raise ConfigurationError(
                f"consumer group {name!r}: on Kafka 1 to 150 of a-z, A-Z, 0-9, '.', '_', '-'"
            )
        if name in self._groups:
            self._groups[name].members.append(subscription)
        else:
            self._groups[name] = self._group(name, subscription)
        if self._started:
            await self._relaunch(name)

    def _group(self, name: str, subscription: Subscription) -> KafkaGroup:
        if subscription.group is None:  # nobody else will ever read what it gives up
            subscription = Subscription(subscription.handler, subscription.event_types, None, "now")
        wanted = self._config.enable_dead_letter_queue and subscription.group is not None
        topic = DeadLetterTopic(self._config, name, self._dead_letters) if wanted else None
        return KafkaGroup(
            self._config, self._storage, self._topics, [subscription], name, topic, self._recorded
        )

    async def _relaunch(self, name: str) -> None:
        """Start the group's task anew: a new member may have brought new types."""
        running = self._tasks.pop(name, None)
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        self._launch(name)

    def _launch(self, name: str) -> None:
        work = supervise(f"group {name}", self._groups[name].consume)
        self._tasks[name] = asyncio.create_task(work, name=f"consumer {name}")

    def _follow(self, follower: GroupConsumer) -> None:
        name = f"follower {len(self._tasks)}"
        self._tasks[name] = asyncio.create_task(follower.run(), name=name)


@dataclass(frozen=True, slots=True)
class _Sent:
    """See Receipt."""

    producer: KafkaProducer
    batch: Batch
    events: list[BaseEvent]
    messages: list[OutgoingMessage]
    refused: list[Refused]

    async def wait(self) -> Sequence[Refused]:
        """See Receipt.wait. A refusal may be of the batch that a message was in: each is tried alone."""
        found = list(self.refused)
        for place in sorted(await self.producer.settled(self.batch)):
            alone = await self.producer.send([self.messages[place]])
            found.extend(Refused(self.events[place], why) for why in alone.values())
        return found
