"""Is everything that the store holds in Kafka: for a range of positions, what is there, missing or doubled.

The topics are read from their first message to their end, the store by position; neither is changed. An
event may rightly stand in its topic more than once: the relay publishes at least once. One that is missing
behind the relay's position was lost, or waits among the relay's dead letters.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from eventsourcing.config import EventBusConfig
from eventsourcing.errors import InvalidEventError, UnavailableError
from eventsourcing.query import EventQuery
from eventsourcing.relay import relay_position
from eventsourcing.storage.base import Storage
from eventsourcing.transport.kafka_message import DEAD_LETTER_INFIX, headers_of, topic_of
from eventsourcing.transport.kafka_options import consumer_options, reason

EXAMPLES = 20
"""How many positions of a kind a report names."""

_TIMEOUT_S, _FETCH, _READ = 30.0, 1000, 5000


@dataclass
class TopicAudit:
    """One topic: how many events the store has for it and how many of them are there; how many messages
    are repetitions, and how many no event of the store. The lists name the first positions of a kind."""

    topic: str
    stored: int = 0
    present: int = 0
    missing: int = 0
    doubled: int = 0
    foreign: int = 0
    missing_positions: list[int] = field(default_factory=list)
    doubled_positions: list[int] = field(default_factory=list)
    foreign_positions: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Audit:
    """The audit of positions above `after` up to `to`, by topic."""

    after: int
    to: int
    topics: list[TopicAudit]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing and nothing is foreign."""
        return not any(topic.missing or topic.foreign for topic in self.topics)


async def audit(storage: Storage, config: EventBusConfig, *, after: int = 0, to: int | None = None) -> Audit:
    """Compare the store with Kafka for the positions above `after` up to `to`, by default the relay's.

    Memory: a bit a position and topic. Raises UnavailableError without a broker.
    """
    upto = await relay_position(storage) if to is None else to
    seen = _Seen(after, max(upto, after))
    try:
        await asyncio.to_thread(_read_topics, config, seen)
    except KafkaException as error:
        raise UnavailableError(f"Kafka: {reason(error)}") from error
    if upto > after:
        window = EventQuery(after_position=after, to_position=upto)
        async for batch in storage.read(window, batch_size=_READ):
            for event in batch:
                seen.expect(_topic(config, event.event_type), event.position)
    return Audit(after, upto, seen.reports())


class _Seen:
    """What was read of each topic: a bitmap of positions, and how often one came again."""

    def __init__(self, after: int, to: int) -> None:
        self._after, self._to = after, to
        self._bits: dict[str, bytearray] = {}
        self._audits: dict[str, TopicAudit] = {}

    def message(self, topic: str, position: int) -> None:
        """A message of this position stands in the topic."""
        if not self._after < position <= self._to:
            return
        audit, bits = self._of(topic)
        place, mask = self._place(position)
        if bits[place] & mask:
            audit.doubled += 1
            _name(audit.doubled_positions, position)
        bits[place] |= mask

    def expect(self, topic: str, position: int) -> None:
        """The store has this position, and it belongs into the topic."""
        audit, bits = self._of(topic)
        place, mask = self._place(position)
        audit.stored += 1
        if bits[place] & mask:
            audit.present += 1
            bits[place] &= ~mask
        else:
            audit.missing += 1
            _name(audit.missing_positions, position)

    def reports(self) -> list[TopicAudit]:
        """By topic; what the store did not ask for is foreign."""
        for topic, bits in self._bits.items():
            audit = self._audits[topic]
            for place in filter(bits.__getitem__, range(len(bits))):
                for bit in range(8):
                    if bits[place] >> bit & 1:
                        audit.foreign += 1
                        _name(audit.foreign_positions, self._after + 1 + place * 8 + bit)
        return [self._audits[topic] for topic in sorted(self._audits)]

    def _of(self, topic: str) -> tuple[TopicAudit, bytearray]:
        if topic not in self._bits:
            self._bits[topic] = bytearray((self._to - self._after) // 8 + 1)
            self._audits[topic] = TopicAudit(topic)
        return self._audits[topic], self._bits[topic]

    def _place(self, position: int) -> tuple[int, int]:
        place, bit = divmod(position - self._after - 1, 8)
        return place, 1 << bit


def _read_topics(config: EventBusConfig, seen: _Seen) -> None:
    options = consumer_options(config, f"{config.topic_prefix}.audit") | {"enable.partition.eof": True}
    consumer = Consumer(options)
    try:
        for message in _messages(consumer, _partitions(consumer, config)):
            position = dict(headers_of(message)).get("es-position")
            if position is not None:
                seen.message(message.topic() or "", int(position))
    finally:
        consumer.close()


def _partitions(consumer: Consumer, config: EventBusConfig) -> list[TopicPartition]:
    """Every partition of the topics of events, at its first message."""
    prefix = f"{config.topic_prefix}."
    topics: dict[str, Any] = consumer.list_topics(timeout=_TIMEOUT_S).topics
    return [
        TopicPartition(name, partition, OFFSET_BEGINNING)
        for name, topic in topics.items()
        if name.startswith(prefix) and not name.startswith(prefix + DEAD_LETTER_INFIX)
        for partition in topic.partitions
    ]


def _messages(consumer: Consumer, partitions: list[TopicPartition]) -> Iterator[Message]:
    """Every message of these partitions, to the end that each has when it is reached.

    Raises KafkaException when nothing comes for a while.
    """
    left = {(partition.topic, partition.partition) for partition in partitions}
    consumer.assign(partitions)
    heard_at = time.monotonic()
    while left:
        messages = consumer.consume(_FETCH, timeout=0.2)
        if messages:
            heard_at = time.monotonic()
        elif time.monotonic() - heard_at > _TIMEOUT_S:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "the topics do not answer"))
        for message in messages:
            error = message.error()
            if error is None:
                yield message
            elif error.code() == KafkaError._PARTITION_EOF:
                left.discard((message.topic() or "", message.partition() or 0))
            else:
                raise KafkaException(error)


def _topic(config: EventBusConfig, event_type: str) -> str:
    try:
        return topic_of(config.topic_prefix, event_type)
    except InvalidEventError:
        return f"{config.topic_prefix} (none can be for {event_type})"


def _name(positions: list[int], position: int) -> None:
    if len(positions) < EXAMPLES:
        positions.append(position)
