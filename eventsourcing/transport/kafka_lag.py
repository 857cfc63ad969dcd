"""How far behind the consumer groups on Kafka are, topic by topic, as the broker has it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec

from eventsourcing.config import EventBusConfig
from eventsourcing.errors import UnavailableError
from eventsourcing.lag import kafka_groups
from eventsourcing.storage.base import StateStorage
from eventsourcing.transport.kafka_message import DEAD_LETTER_INFIX
from eventsourcing.transport.kafka_options import admin_options, reason

_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class KafkaLag:
    """The messages of one topic that a group has not committed."""

    group: str
    topic: str
    messages: int


async def kafka_lags(config: EventBusConfig, storage: StateStorage) -> list[KafkaLag]:
    """The lag of every group that has begun on Kafka, on each topic it has committed, by group and topic.

    One question for all topics and one for each group, whatever they hold. Raises UnavailableError
    without a broker.
    """
    groups = list(await kafka_groups(storage))
    return await asyncio.to_thread(_asked, config, groups) if groups else []


def _asked(config: EventBusConfig, groups: list[str]) -> list[KafkaLag]:
    admin = AdminClient(admin_options(config))
    try:
        ends = _ends(admin, f"{config.topic_prefix}.")
        return [lag for group in groups for lag in _lags_of(admin, group, ends)]
    except KafkaException as error:
        raise UnavailableError(f"Kafka: lags cannot be read: {reason(error)}") from error


def _ends(admin: AdminClient, prefix: str) -> dict[tuple[str, int], int]:
    """The end of every partition of the events' topics."""
    topics = admin.list_topics(timeout=_TIMEOUT_S).topics
    places = [
        TopicPartition(name, partition)
        for name, topic in topics.items()
        if name.startswith(prefix) and not name.removeprefix(prefix).startswith(DEAD_LETTER_INFIX)
        for partition in topic.partitions
    ]
    end: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]  # it is untyped
    asked = admin.list_offsets(dict.fromkeys(places, end), request_timeout=_TIMEOUT_S)
    return {(place.topic, place.partition): answer.result().offset for place, answer in asked.items()}


def _lags_of(admin: AdminClient, group: str, ends: dict[tuple[str, int], int]) -> list[KafkaLag]:
    """A group's lag on the topics that it has committed an offset of; one without it is all behind."""
    request = [ConsumerGroupTopicPartitions(group)]
    (answer,) = admin.list_consumer_group_offsets(request, request_timeout=_TIMEOUT_S).values()
    committed = {
        (place.topic, place.partition): max(place.offset, 0) for place in answer.result().topic_partitions
    }
    subscribed = {topic for topic, _ in committed}
    behind: dict[str, int] = defaultdict(int)
    for (topic, partition), end in ends.items():
        if topic in subscribed:
            behind[topic] += max(0, end - committed.get((topic, partition), 0))
    return [KafkaLag(group, topic, messages) for topic, messages in sorted(behind.items())]
