"""The producer: librdkafka's, with one thread that polls it and one future a batch.

Batches are queued one after the other, each whole, so that messages of one key leave in the order of the
calls; several batches may await their acknowledgement at a time. After a failure the producer is replaced:
what was queued behind the failure must not overtake its repetition. So it is when the broker does not let
us in, at once: what is queued would wait for its timeout.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from eventsourcing.errors import UnavailableError
from eventsourcing.transport.kafka_message import OutgoingMessage
from eventsourcing.transport.kafka_options import Options, Refusals

REFUSALS = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.TOPIC_EXCEPTION,
    }
)
"""What the broker answers to a message that it will never take."""

_QUEUE_FULL_PAUSE_S = 0.01
_POLL_S = 0.1
_FLUSH_S = 10.0


class KafkaProducer:
    """Sends batches. Opened by the first one."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._polled: _Polled | None = None
        self._order = asyncio.Lock()

    async def send(self, messages: Sequence[OutgoingMessage]) -> dict[int, str]:
        """Queue a batch and await it: the places of the messages refused for good, with the reasons.

        Raises UnavailableError; then each message may or may not have arrived.
        """
        return await self.settled(await self.queue(messages))

    async def queue(self, messages: Sequence[OutgoingMessage]) -> Batch:
        """Queue a batch behind those of earlier calls. A full local queue waits: so a slow broker slows
        its producers down. Raises UnavailableError when earlier messages were not taken."""
        async with self._order:
            polled = self._polled = self._polled or _Polled(self._options)
            batch = Batch(polled, [message.topic for message in messages])
            for place, message in enumerate(messages):
                settle = partial(batch.settle, place)
                while not self._queued(polled, message, settle):  # noqa: ASYNC110 - the queue tells nobody
                    await asyncio.sleep(_QUEUE_FULL_PAUSE_S)
        return batch

    async def settled(self, batch: Batch) -> dict[int, str]:
        """Await a batch: the places of the messages refused for good, with the reasons.

        Raises UnavailableError; then each message of it may or may not have arrived, and of those
        queued behind it none will.
        """
        errors = await batch.done
        for place, error in errors.items():
            if error.code() not in REFUSALS:
                await self._replace(batch.polled)
                why = batch.polled.refusals.said or f"{batch.topics[place]}: {error.str()}"
                raise UnavailableError(f"Kafka did not take the events: {why}")
        return {place: error.str() for place, error in errors.items()}

    async def close(self) -> None:
        """Wait a little for what is queued, and close."""
        polled, self._polled = self._polled, None
        if polled is not None:
            await asyncio.to_thread(polled.close, flush_s=_FLUSH_S)

    def _queued(self, polled: _Polled, message: OutgoingMessage, settle: partial[None]) -> bool:
        """Whether there was room in the local queue, or the message is refused and settled."""
        if polled is not self._polled:
            raise UnavailableError("Kafka did not take earlier events")
        try:
            polled.producer.produce(
                message.topic, message.value, message.key, headers=message.headers, on_delivery=settle
            )
        except BufferError:
            return False
        except KafkaException as error:  # refused before it was queued
            settle(error.args[0], None)
        return True

    async def _replace(self, polled: _Polled) -> None:
        if polled is self._polled:
            self._polled = None
            await asyncio.to_thread(polled.close, flush_s=0)


class _Polled:
    """A producer and the thread that serves its callbacks."""

    def __init__(self, options: Options) -> None:
        self.refusals = Refusals(options, self._give_up)
        self.producer = Producer(options | {"error_cb": self.refusals.heard})
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="kafka producer", daemon=True)
        self._thread.start()

    def _poll(self) -> None:
        while not self._ends.is_set():
            try:
                self.producer.poll(_POLL_S)
            except KafkaException as error:  # a fatal one is raised here, and told by no callback
                self.refusals.heard(error.args[0])

    def _give_up(self) -> None:
        """Fail what waits: it is told in this thread's next poll."""
        self.producer.purge()

    def close(self, *, flush_s: float) -> None:
        """Wait for what is queued, give up the rest, and end the thread."""
        with suppress(KafkaException):  # a fatal one: nothing more leaves
            self.producer.flush(flush_s)
        self.producer.purge()
        with suppress(KafkaException):
            self.producer.flush(1.0)  # tells the waiting batches
        self._ends.set()
        self._thread.join()


class Batch:
    """Messages under way to topics; `done` is resolved once, with the errors by place."""

    def __init__(self, polled: _Polled, topics: Sequence[str]) -> None:
        self.polled, self.topics = polled, topics
        self._loop = asyncio.get_running_loop()
        self._left, self._errors = len(topics), dict[int, KafkaError]()
        self._lock = threading.Lock()
        self.done: asyncio.Future[dict[int, KafkaError]] = self._loop.create_future()
        if not topics:
            self.done.set_result({})

    def settle(self, place: int, error: KafkaError | None, _message: Message | None) -> None:
        """One message is acknowledged or failed; called in the poll thread or by the sender."""
        with self._lock:
            if error is not None:
                self._errors[place] = error
            self._left -= 1
            last = self._left == 0
        if last:
            self._loop.call_soon_threadsafe(self._resolve)

    def _resolve(self) -> None:
        if not self.done.done():  # whoever sent it may have been cancelled
            self.done.set_result(self._errors)
