"""What each Kafka client is configured with: our defaults, then the user's options, then what is ours.

Every option of librdkafka passes through. Those on which a guarantee stands are reserved; an unknown one
or a wrong value is refused at start with one line. No value of a secret option gets into a message.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from eventsourcing.config import EventBusConfig
from eventsourcing.errors import ConfigurationError
from eventsourcing.tls import refuse_contradiction

Options = dict[str, Any]

RESERVED = {
    "bootstrap.servers": "KAFKA_BOOTSTRAP_SERVERS is the setting for it",
    "metadata.broker.list": "KAFKA_BOOTSTRAP_SERVERS is the setting for it",
    "enable.auto.commit": "only what is done is committed",
    "enable.auto.offset.store": "only what is done is committed",
    "auto.offset.reset": "the subscription says where it starts",
    "enable.idempotence": "a retry must neither repeat nor reorder",
    "transactional.id": "effects commit in the event database",
    "partitioner": "every client must put an aggregate into the same partition",
    "partition.assignment.strategy": "an aggregate's partitions must go to one member",
    "group.id": "the subscription names its consumer group",
}
"""Options that a guarantee stands on, each with its reason."""

_SECRET = re.compile(r"password|secret|\.pem$|token|oauthbearer\.config|assertion\.private")
_OTHER_SIDE = re.compile(r"is a (producer|consumer) property and will be ignored")

_COMMON: Options = {
    "client.id": "event-sourced-migration",
    "reconnect.backoff.ms": 100,
    "reconnect.backoff.max.ms": 5_000,
    "allow.auto.create.topics": False,
}
_PRODUCER: Options = {
    "compression.type": "lz4",
    "linger.ms": 5,
    "delivery.timeout.ms": 120_000,
}
_CONSUMER: Options = {
    "queued.max.messages.kbytes": 16_384,
    "isolation.level": "read_committed",
    "fetch.wait.max.ms": 100,
    "topic.metadata.refresh.interval.ms": 10_000,
}


class _OneSided(logging.Filter):
    """Options go to every client; that a producer does not need a consumer's is no news."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not _OTHER_SIDE.search(record.getMessage())


_log = logging.getLogger("eventsourcing.kafka")
_log.addFilter(_OneSided())


def admin_options(config: EventBusConfig) -> Options:
    """For a client that makes and describes topics."""
    return {**_COMMON, **config.kafka_options, **_ours(config)}


def producer_options(config: EventBusConfig) -> Options:
    """For the producer: idempotent, so that a retry neither repeats nor reorders; keys as Java puts them."""
    return {
        **_COMMON,
        **_PRODUCER,
        **config.kafka_options,
        **_ours(config),
        "enable.idempotence": True,
        "partitioner": "murmur2_random",
    }


def consumer_options(config: EventBusConfig, group: str) -> Options:
    """For a consumer of a group, which commits by itself and starts at the beginning."""
    assignor: Options = {"partition.assignment.strategy": "range"}
    if config.kafka_options.get("group.protocol") == "consumer":  # KIP-848: the broker assigns
        assignor = {"group.remote.assignor": "range"}
    return {
        **_COMMON,
        **_CONSUMER,
        **config.kafka_options,
        **_ours(config),
        **assignor,
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
    }


def check_options(config: EventBusConfig) -> None:
    """Raise ConfigurationError for a reserved or unknown option, or a value that librdkafka refuses."""
    for name in config.kafka_options:
        if name in RESERVED:
            raise ConfigurationError(f"Kafka option {name} is reserved: {RESERVED[name]}")
    refuse_contradiction(config.kafka_options)
    try:
        Producer(producer_options(config))
        Consumer(consumer_options(config, "check")).close()
    except (KafkaException, TypeError, ValueError) as error:
        raise ConfigurationError(f"Kafka: {redacted(config, reason(error))}") from None


def redacted(config: EventBusConfig, text: str) -> str:
    """The text without the values of secret options."""
    for name, value in config.kafka_options.items():
        if _SECRET.search(name) and str(value):
            text = text.replace(str(value), "***")
    return text


def reason(error: BaseException | KafkaError) -> str:
    """What a client's error says, on one line."""
    inner = error.args[0] if isinstance(error, KafkaException) and error.args else error
    said = inner.str() if hasattr(inner, "str") else str(inner)
    return " ".join(said.split())


class Refusals:
    """Hears, as a client's `error_cb`, that it is not let in or can do no more: what its calls fail with
    afterwards says only that nobody answered."""

    def __init__(self, options: Options, then: Callable[[], None] = lambda: None) -> None:
        self._options, self._then, self.said = options, then, ""

    def heard(self, error: KafkaError) -> None:
        """Keep what the broker says, and call `then`."""
        if error.fatal() or error.code() in NOT_LET_IN:
            user = self._options.get("sasl.username")
            self.said = f"user {user!r} is refused: {reason(error)}" if user else reason(error)
            self._then()


NOT_LET_IN = frozenset({KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED})


def _ours(config: EventBusConfig) -> Options:
    return {"bootstrap.servers": config.kafka_bootstrap_servers, "logger": _log}
