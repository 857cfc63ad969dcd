"""The topic of a group's dead letters: the message as it was, and why it was given up in `dlq-*` headers.

The table of dead letters is what re-drive reads; the topic is for the tools that people have. A dead
letter may stand in the topic more than once: tell repetitions by `ce_id`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from eventsourcing.config import EventBusConfig
from eventsourcing.errors import HandlerError, InvalidEventError
from eventsourcing.events import BaseEvent
from eventsourcing.failures import Failure
from eventsourcing.gate import Arrival
from eventsourcing.transport.kafka_message import (
    DEAD_LETTER_INFIX,
    Headers,
    OutgoingMessage,
    encode_message,
    headers_of,
)
from eventsourcing.transport.kafka_offsets import Origin
from eventsourcing.transport.kafka_producer import KafkaProducer

_log = logging.getLogger(__name__)


def dead_letter_topic(prefix: str, group: str) -> str:
    """Where the dead letters of a group go."""
    return f"{prefix}.{DEAD_LETTER_INFIX}{group}"


class DeadLetterTopic:
    """Publishes what one group gives up."""

    def __init__(self, config: EventBusConfig, group: str, producer: KafkaProducer) -> None:
        self._config, self._group, self._producer = config, group, producer
        self.topic = dead_letter_topic(config.topic_prefix, group)

    async def publish(self, arrivals: Sequence[Arrival], failure: HandlerError | None) -> None:
        """Publish what failed, first, and what waits behind it; or, without a failure, only waits.

        Raises UnavailableError; then it is not certain what was published.
        """
        messages = [
            self._message(arrival, failure if place == 0 else None) for place, arrival in enumerate(arrivals)
        ]
        for place, why in (await self._producer.send(messages)).items():
            event = arrivals[place].event
            _log.error("%s refused event %s; the table holds it: %s", self.topic, event.event_id, why)

    def _message(self, arrival: Arrival, failure: HandlerError | None) -> OutgoingMessage:
        origin = arrival.origin
        if isinstance(origin, Origin):
            message = origin.message
            headers = headers_of(message)
            key, value = message.key() or b"", message.value() or b""
            headers += [
                ("dlq-original-topic", origin.place[0]),
                ("dlq-original-partition", str(origin.place[1])),
                ("dlq-original-offset", str(origin.offset)),
                ("dlq-original-timestamp", str(message.timestamp()[1])),
            ]
        else:
            made = encode_message(self._config.topic_prefix, arrival.event)
            key, value, headers = made.key, made.value, made.headers
        return OutgoingMessage(self.topic, key, value, headers + self._reasons(arrival.event, failure))

    def _reasons(self, event: BaseEvent, failure: HandlerError | None) -> Headers:
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        headers: Headers = [
            ("dlq-consumer-group", self._group),
            ("dlq-reason", _reason(failure)),
            ("dlq-last-failure-time", now),
        ]
        if failure is not None:
            cause = Failure.of(failure.__cause__ or failure, event)
            headers += [
                ("dlq-handler", failure.handler),
                ("dlq-attempts", str(failure.attempts)),
                ("dlq-exception-class", cause.error_class),
                ("dlq-exception-message", cause.message),
                ("dlq-exception-stacktrace", cause.stack),
            ]
        return headers


def _reason(failure: HandlerError | None) -> str:
    if failure is None:
        return "parked-behind"
    return "deserialization" if isinstance(failure.__cause__, InvalidEventError) else "retries-exhausted"
