"""A consumer client on a thread of its own: every call runs there, one after the other, to its end.

A call that was cancelled would have read messages that nobody sees; so a cancelled caller waits for its
call, and only then is cancelled. The client tells a listener on the event loop about its partitions, and
waits for the answer before it goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from eventsourcing.transport.kafka_offsets import Place
from eventsourcing.transport.kafka_options import Options

T = TypeVar("T")

_POLL_S, _FETCH = 0.1, 500
_ANSWER_S = 60.0
_LOOKUP_S = 10.0


class PartitionListener(Protocol):
    """Who wants to know which partitions are ours."""

    async def assigned(self, places: list[Place]) -> None:
        """These are ours from now on."""

    async def revoked(self, places: list[Place]) -> dict[Place, int]:
        """These are about to go: finish what is in hand and return the offsets to commit."""

    async def lost(self, places: list[Place]) -> None:
        """These went already: others may be at work on them."""


class OwnedConsumer:
    """One consumer. Partitions without a committed offset start at `since_ms`, None: at their beginning."""

    def __init__(self, options: Options, listener: PartitionListener, *, since_ms: int | None) -> None:
        self._options, self._listener, self._since_ms = options, listener, since_ms
        self._incremental = options.get("group.protocol") == "consumer"
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="kafka consumer")
        self._consumer: Consumer | None = None

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Join the group for these topics, or change them. Raises KafkaException."""
        await self._run(lambda: self._subscribe(sorted(topics)))

    async def poll(self, commit: dict[Place, int], pause: list[Place], resume: list[Place]) -> list[Message]:
        """Commit these offsets without waiting, pause and resume partitions, and return what has arrived
        once something has, or nothing after a while. Raises KafkaException."""
        return await self._run(lambda: self._poll(commit, pause, resume))

    async def close(self) -> None:
        """Leave the group, after the listener gave up its partitions."""
        await self._run(self._close)
        self._pool.shutdown(wait=False)

    async def _run(self, call: Callable[[], T]) -> T:
        future = self._loop.run_in_executor(self._pool, call)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                with suppress(asyncio.CancelledError, KafkaException):
                    await asyncio.shield(future)
            raise

    def _subscribe(self, topics: list[str]) -> None:
        if self._consumer is None:
            self._consumer = Consumer(self._options)
        self._consumer.subscribe(
            topics, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
        )

    def _poll(self, commit: dict[Place, int], pause: list[Place], resume: list[Place]) -> list[Message]:
        consumer = self._consumer
        assert consumer is not None, "it subscribes first"
        if commit:
            consumer.commit(offsets=_partitions(commit), asynchronous=True)
        if pause:
            consumer.pause([TopicPartition(*place) for place in pause])
        if resume:
            consumer.resume([TopicPartition(*place) for place in resume])
        messages = consumer.consume(1, _POLL_S)  # back as soon as there is one; then what else there is
        return messages + consumer.consume(_FETCH - 1, 0) if messages else messages

    def _close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._answer(self._listener.assigned(_places(partitions)))
        if self._since_ms is not None:
            partitions = self._started_at(consumer, partitions, self._since_ms)
        if self._incremental:
            consumer.incremental_assign(partitions)
        else:
            consumer.assign(partitions)

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        offsets = self._answer(self._listener.revoked(_places(partitions)))
        if offsets:
            with suppress(KafkaException):  # then the next owner gets them again, and knows them
                consumer.commit(offsets=_partitions(offsets), asynchronous=False)

    def _lost(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._answer(self._listener.lost(_places(partitions)))

    @staticmethod
    def _started_at(
        consumer: Consumer, partitions: list[TopicPartition], since_ms: int
    ) -> list[TopicPartition]:
        """Where partitions start that have no committed offset: at the first message since a moment."""
        starts = consumer.committed(partitions, timeout=_LOOKUP_S)
        for start in starts:
            if start.offset < 0:
                # The end is asked for first: a message that comes in between is behind it.
                _, end = consumer.get_watermark_offsets(start, timeout=_LOOKUP_S)
                asked = TopicPartition(start.topic, start.partition, since_ms)
                found = consumer.offsets_for_times([asked], timeout=_LOOKUP_S)[0].offset
                start.offset = found if found >= 0 else end
        return starts

    def _answer(self, question: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(question, self._loop).result(timeout=_ANSWER_S)


def _places(partitions: list[TopicPartition]) -> list[Place]:
    return [(partition.topic, partition.partition) for partition in partitions]


def _partitions(offsets: dict[Place, int]) -> list[TopicPartition]:
    return [TopicPartition(topic, partition, offset) for (topic, partition), offset in offsets.items()]
