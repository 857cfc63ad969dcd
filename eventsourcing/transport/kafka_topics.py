"""Topics: made, checked, or trusted, as the setting says; every one with the same number of partitions.

Equal counts put an aggregate into the same partition of every topic. So a count is never changed in
place: the keys would move.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._metadata import TopicMetadata
from confluent_kafka.cimpl import NewTopic

from eventsourcing.config import EventBusConfig
from eventsourcing.errors import ConfigurationError, UnavailableError
from eventsourcing.transport.kafka_options import Refusals, admin_options, reason
from eventsourcing.wording import counted

_log = logging.getLogger(__name__)

_FIRST_LOOK_S, _TIMEOUT_S, _LOOK_AGAIN_S = 2.0, 10.0, 0.02
_TOPIC_CONFIG = {"retention.ms": "-1", "cleanup.policy": "delete"}
"""Events are kept: a new group starts at the first one. Never compacted: each event counts."""


class KafkaTopics:
    """The topics of one bus. Those found right once are not looked at again."""

    def __init__(self, config: EventBusConfig) -> None:
        self._config = config
        self._right: set[str] = set()
        self._options = admin_options(config)
        self._refusals = Refusals(self._options)
        self._client: AdminClient | None = None

    async def ensure(self, topics: Iterable[str]) -> None:
        """Make sure that these topics are there, as the setting `kafka_provisioning` says.

        Raises ConfigurationError for a topic that is missing or has another number of partitions, and for
        a user who is not let in or may not make it, UnavailableError without a broker; then some may have
        been made.
        """
        wanted = sorted(set(topics) - self._right)
        if wanted and self._config.kafka_provisioning != "none":
            await asyncio.to_thread(self._ensure, wanted)
        self._right.update(wanted)

    async def partitions(self) -> dict[str, int]:
        """The topics of this prefix that exist and how many partitions each has.

        Raises ConfigurationError for a user who is not let in, UnavailableError without a broker.
        """
        return await asyncio.to_thread(self._partitions)

    def _ensure(self, wanted: list[str]) -> None:
        found = self._partitions()
        if self._config.kafka_provisioning == "create":
            self._create([topic for topic in wanted if topic not in found])
            found = self._visible(wanted)
        for topic in wanted:
            count = found.get(topic)
            if count is None:
                raise ConfigurationError(
                    f"Kafka has no topic {topic}; make it with "
                    f"{counted(self._config.kafka_partitions, 'partition')}, or set "
                    "ESM_KAFKA_PROVISIONING=create"
                )
            if count != self._config.kafka_partitions:
                raise ConfigurationError(
                    f"Kafka's topic {topic} has {counted(count, 'partition')}, ESM_KAFKA_PARTITIONS is "
                    f"{self._config.kafka_partitions}; all topics must have the same number"
                )

    def _visible(self, wanted: list[str]) -> dict[str, int]:
        """The topics once these are among them: brokers hear of new ones a moment later."""
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            found = self._partitions()
            if found.keys() >= set(wanted) or time.monotonic() > deadline:
                return found
            time.sleep(_LOOK_AGAIN_S)

    def _create(self, names: list[str]) -> None:
        missing = [
            NewTopic(
                topic,
                num_partitions=self._config.kafka_partitions,
                replication_factor=self._config.kafka_replication_factor,
                config=_TOPIC_CONFIG,
            )
            for topic in names
        ]
        if not missing:
            return
        for topic, made in self._admin().create_topics(missing, operation_timeout=_TIMEOUT_S).items():
            try:
                made.result(timeout=_TIMEOUT_S + 5)
                _log.info("made topic %s with %s partitions", topic, self._config.kafka_partitions)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # by another process just now
                    raise _translated(f"topic {topic} cannot be made", error) from error

    def _partitions(self) -> dict[str, int]:
        try:
            found = self._listed(_FIRST_LOOK_S) or self._admin().list_topics(timeout=_TIMEOUT_S).topics
        except KafkaException as error:
            raise _translated("topics cannot be listed", error) from error
        prefix = f"{self._config.topic_prefix}."
        return {name: len(topic.partitions) for name, topic in found.items() if name.startswith(prefix)}

    def _listed(self, within_s: float) -> dict[str, TopicMetadata] | None:
        """All topics, None when nobody answers in time. Who is not let in is told so."""
        admin = self._admin()
        try:
            return admin.list_topics(timeout=within_s).topics
        except KafkaException:
            self._refusals.said = ""
            admin.poll(0)
            if self._refusals.said:
                raise ConfigurationError(f"Kafka: {self._refusals.said}") from None
            return None

    def _admin(self) -> AdminClient:
        """One client for as long as the bus lives: answers of one that is gone never come."""
        if self._client is None:
            self._client = AdminClient(self._options | {"error_cb": self._refusals.heard})
        return self._client


_FAULTS_OF_SETTINGS = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.INVALID_REPLICATION_FACTOR,
        KafkaError.POLICY_VIOLATION,
        KafkaError.INVALID_PARTITIONS,
    }
)


def _translated(what: str, error: KafkaException) -> ConfigurationError | UnavailableError:
    kind = ConfigurationError if error.args[0].code() in _FAULTS_OF_SETTINGS else UnavailableError
    return kind(f"Kafka: {what}: {reason(error)}")
