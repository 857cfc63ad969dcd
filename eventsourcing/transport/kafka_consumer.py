"""One consumer group on Kafka: from messages to the delivery, and back to committed offsets.

Only offsets of settled messages are committed, so whatever is dropped comes again, and what was done is
known by its version. When partitions are taken away, what is in hand is finished and committed first.

States: preparing → joined → (partitions go, come) … → left; after a fault again from the start, at the
committed offsets.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from confluent_kafka import KafkaError, KafkaException, Message

from eventsourcing.config import EventBusConfig
from eventsourcing.consumer import checkpoint_key
from eventsourcing.errors import InvalidEventError, UnavailableError, UpcastError
from eventsourcing.events import BaseEvent, RecordedEvent, registered_events
from eventsourcing.gate import Arrival, newest_predecessor
from eventsourcing.lag import KAFKA_GROUP
from eventsourcing.storage.base import CHECKPOINTS, Storage
from eventsourcing.transport.base import Subscription
from eventsourcing.transport.kafka_client import OwnedConsumer
from eventsourcing.transport.kafka_dead_letters import DeadLetterTopic
from eventsourcing.transport.kafka_delivery import GroupDelivery, undecodable
from eventsourcing.transport.kafka_message import (
    DEAD_LETTER_INFIX,
    decode_event,
    headers_of,
    predecessors_of,
    topic_of,
)
from eventsourcing.transport.kafka_offsets import Offsets, Origin, Place
from eventsourcing.transport.kafka_options import consumer_options, reason
from eventsourcing.transport.kafka_topics import KafkaTopics
from eventsourcing.unreadable import as_stored

_log = logging.getLogger(__name__)

MOST_IN_HAND, MOST_BYTES_IN_HAND, LEAST_OF_A_PARTITION = 10_000, 64 * 1024 * 1024, 500
"""How much a group takes in before it pauses partitions."""

_COMMIT_S, _GAPS_S, _TOPICS_S = 1.0, 0.5, 10.0
_FINISH_S, _LEAVE_S = 30.0, 5.0
_CLOCKS_DIFFER_MS = 300_000


@dataclass
class KafkaGroup:
    """Feeds the members of one group. `recorded` says that a store stands behind the topics."""

    config: EventBusConfig
    storage: Storage
    topics: KafkaTopics
    members: list[Subscription]
    name: str
    dead_letters: DeadLetterTopic | None
    recorded: bool
    _created_ms: int = field(default_factory=lambda: int(time.time() * 1000))
    _drafts: int = 0
    _leaving: bool = False
    _wanted: dict[str, bool] = field(default_factory=dict)

    async def consume(self) -> None:
        """Consume until cancelled or until something fails."""
        self._wanted, self._leaving = {}, False  # a member may have come
        begin, since_ms = await self._begin()
        await self.topics.ensure(await self._needed())
        self._offsets = Offsets(most=MOST_IN_HAND, most_bytes=MOST_BYTES_IN_HAND, least=LEAST_OF_A_PARTITION)
        self._delivery = GroupDelivery(
            self.config, self.storage, self.members, self.dead_letters, self._settled, begin, self.recorded
        )
        consumer = OwnedConsumer(consumer_options(self.config, self.name), self, since_ms=since_ms)
        try:
            await self._joined(consumer)
        except KafkaException as error:
            raise UnavailableError(f"Kafka: {reason(error)}") from error
        finally:
            self._leaving = True
            with suppress(KafkaException):
                await consumer.close()
            await self._delivery.close()

    async def _joined(self, consumer: OwnedConsumer) -> None:
        subscribed: set[str] = set()
        committed_at = looked_at = asked_at = 0.0
        commit: dict[Place, int] = {}
        while True:
            now = time.monotonic()
            if now - asked_at >= _TOPICS_S or not subscribed:
                asked_at = now
                found = await self._found()
                if found != subscribed:
                    await consumer.subscribe(found)
                    subscribed = found
            if now - committed_at >= _COMMIT_S:
                committed_at, commit = now, self._offsets.committable()
            messages = await consumer.poll(commit, *self._offsets.pressure())
            commit = {}
            self._delivery.check()
            await self._take(messages)
            if self.recorded and now - looked_at >= _GAPS_S:
                looked_at = now
                self._delivery.fill_gaps()

    # Where and what

    async def _begin(self) -> tuple[int, int | None]:
        """The position up to which a group needs nothing, and since when its messages matter. A group
        seen for the first time keeps what its first member says."""
        now = self.members[0].start == "now"
        if not self.recorded:
            return 0, self._created_ms if now else None
        key = f"{KAFKA_GROUP}{self.name}"
        fresh = {"position": 0, "since_ms": None}
        if now:
            fresh = {"position": await self.storage.horizon(), "since_ms": self._created_ms}
        async with self.storage.transaction() as transaction:
            before = await transaction.get(CHECKPOINTS, checkpoint_key(self.name))
            if before is not None:  # it ran over the store, and goes on from there
                done = [before["position"], *(first - 1 for first in before.get("held", {}).values())]
                fresh = {"position": min(done), "since_ms": None}
            await transaction.add(CHECKPOINTS, key, fresh)
            kept = await transaction.get(CHECKPOINTS, key)
        assert kept is not None, "it was added just now"
        since_ms = kept["since_ms"]
        return kept["position"], None if since_ms is None else since_ms - _CLOCKS_DIFFER_MS

    async def _needed(self) -> set[str]:
        """The topics that must be there: of the types that members name, and of the dead letters."""
        types = {kind for member in self.members for kind in member.event_types}
        if any(not member.event_types for member in self.members):
            types |= {cls.declared_type for cls in registered_events()}
        needed = {topic_of(self.config.topic_prefix, kind) for kind in types if self._wants(kind)}
        return needed | ({self.dead_letters.topic} if self.dead_letters else set())

    async def _found(self) -> set[str]:
        """The topics that there are and that concern a member."""
        prefix = f"{self.config.topic_prefix}."
        types = {topic.removeprefix(prefix) for topic in await self.topics.partitions()}
        return {
            prefix + kind for kind in types if not kind.startswith(DEAD_LETTER_INFIX) and self._wants(kind)
        }

    def _wants(self, event_type: str) -> bool:
        if event_type not in self._wanted:
            self._wanted[event_type] = any(member.wants(event_type) for member in self.members)
        return self._wanted[event_type]

    # Messages

    async def _take(self, messages: Sequence[Message]) -> None:
        arrivals = []
        for message in messages:
            if (error := message.error()) is not None:
                self._heed(error, message.topic())
                continue
            origin = Origin((message.topic() or "", message.partition() or 0), message.offset() or 0, message)
            if self._offsets.assigned(origin.place):
                self._offsets.add(origin)
                if (arrival := self._arrival(origin)) is not None:
                    arrivals.append(arrival)
                else:
                    self._offsets.done(origin)
        if arrivals:
            await self._delivery.take(arrivals)

    @staticmethod
    def _heed(error: KafkaError, topic: str | None) -> None:
        if error.fatal() or error.code() in (
            KafkaError.TOPIC_AUTHORIZATION_FAILED,
            KafkaError.GROUP_AUTHORIZATION_FAILED,
        ):
            raise UnavailableError(f"Kafka: {topic + ': ' if topic else ''}{error.str()}")
        if error.code() != KafkaError._PARTITION_EOF:
            _log.warning("Kafka: %s", error.str())

    def _arrival(self, origin: Origin) -> Arrival | None:
        """The event of a message, ready for the gate; None when no member wants its type."""
        partition, fault = origin.place[1], None
        headers = headers_of(origin.message)
        try:
            event, predecessors = decode_event(origin.message.value(), headers)
        except UpcastError as error:  # it has its place among the others, and waits for it
            event, predecessors = as_stored(error), predecessors_of(headers)
            fault = undecodable(event, error, str(error))
        except InvalidEventError as error:
            event, predecessors = _stand_in(origin), {}
            fault = undecodable(event, error, error.reason)
        if (fault is None or isinstance(event, RecordedEvent)) and not self._wants(event.event_type):
            return None
        if self.recorded and isinstance(event, RecordedEvent):
            before = newest_predecessor(predecessors, self._wants)
            return Arrival(event.aggregate_id, event.event_version, event, partition, before, origin, fault)
        self._drafts += 1  # no version to go by: in the order of their coming
        key = f"\x1f{event.aggregate_id}"  # no aggregate_id holds a control character
        return Arrival(key, self._drafts, event, partition, 0, origin, fault)

    def _settled(self, arrival: Arrival) -> None:
        if isinstance(arrival.origin, Origin):
            self._offsets.done(arrival.origin)

    # See PartitionListener

    async def assigned(self, places: list[Place]) -> None:
        """See PartitionListener.assigned."""
        self._offsets.assign(places)

    async def revoked(self, places: list[Place]) -> dict[Place, int]:
        """See PartitionListener.revoked."""
        await self._delivery.drain(_LEAVE_S if self._leaving else _FINISH_S)
        offsets = self._offsets.committable(places)
        await self.lost(places)
        return offsets

    async def lost(self, places: list[Place]) -> None:
        """See PartitionListener.lost."""
        self._offsets.forget(places)
        left = self._delivery.forget({partition for _, partition in places}, self._is_ours)
        if left:
            await self._delivery.take(left)

    def _is_ours(self, arrival: Arrival) -> bool:
        return isinstance(arrival.origin, Origin) and self._offsets.assigned(arrival.origin.place)


def _stand_in(origin: Origin) -> BaseEvent:
    """What stands among the dead letters for a message that is no event."""
    topic, partition = origin.place
    message = origin.message
    return BaseEvent(
        event_type="undecodable",
        aggregate_id=f"{topic}/{partition}/{origin.offset}"[-255:],
        aggregate_type="kafka-message",
        data={
            "topic": topic,
            "partition": partition,
            "offset": origin.offset,
            "key": _text(message.key()),
            "value": _text(message.value()),
            "headers": {name: _text(value) for name, value in headers_of(message)},
        },
    )


def _text(content: str | bytes | None) -> str | None:
    return (
        content.decode("utf-8", "replace").replace("\x00", "\ufffd")
        if isinstance(content, bytes)
        else content
    )
