"""What the store knows of the whole system, as gauges: lags, dead letters, the horizon, replays.

Every process that asks is told the same; a worker exports it. The answers are kept for some seconds, so that
scraping costs the database the same however many scrape, and the cost does not grow with the events.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from eventsourcing.bootstrap import System
from eventsourcing.dead_letter_queue import DeadLetterQueue
from eventsourcing.errors import EventSourcingError, UnavailableError
from eventsourcing.lag import KAFKA_GROUP, Lag, lags
from eventsourcing.logs import spoken
from eventsourcing.metrics import Reading, family
from eventsourcing.replays import ReplayJournal
from eventsourcing.storage.base import CHECKPOINTS

if TYPE_CHECKING:
    from prometheus_client.core import GaugeMetricFamily

_log = logging.getLogger(__name__)

KEPT_S = 5.0
WITHIN_S = 4.0
"""How long the store may take; then a scrape says that it is not up, and nothing else of it."""

RECENT_REPLAYS = 100
REPLAY_STATES = ("pending", "running", "completed", "failed", "cancelled", "interrupted")


class Readings:
    """The gauges of one system."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._kept: list[GaugeMetricFamily] = []
        self._at = float("-inf")
        self._lock = asyncio.Lock()

    async def families(self) -> list[GaugeMetricFamily]:
        """What the store says now, or said a moment ago; only that it is down while it is."""
        async with self._lock:
            if time.monotonic() - self._at >= KEPT_S:
                self._kept = await self._asked()
                self._at = time.monotonic()
            return self._kept

    async def _asked(self) -> list[GaugeMetricFamily]:
        try:
            async with asyncio.timeout(WITHIN_S):
                found = await self._store()
        except (EventSourcingError, TimeoutError) as error:
            _log.warning("the store cannot be measured: %s", spoken(error))
            return [family("es_store_up", _UP, {(): 0})]
        return [family("es_store_up", _UP, {(): 1}), *found]

    async def _store(self) -> list[GaugeMetricFamily]:
        storage = self._system.store.storage
        stats = await self._system.store.get_event_stats()
        by_type: Reading = {(str(name),): float(count) for name, count in stats["events_by_type"].items()}
        replays = await ReplayJournal(storage).page(limit=RECENT_REPLAYS)
        states = Counter(row["status"] for row in replays)
        return [
            family("es_store_events", "Events stored, by type.", by_type, ("event_type",)),
            family("es_store_position", "The highest committed position.", {(): await storage.head()}),
            family(
                "es_reader_horizon_hold_seconds",
                "Age of the oldest append in flight, which holds readers back.",
                {(): await storage.oldest_append_s()},
            ),
            *_lagging(found := await lags(storage)),
            *await self._dead_letters({lag.name for lag in found if lag.kind == "group"}),
            *await self._on_kafka(),
            family(
                "es_replay_state",
                f"The {RECENT_REPLAYS} newest replays by state.",
                {(state,): states[state] for state in REPLAY_STATES},
                ("state",),
            ),
        ]

    async def _dead_letters(self, known: set[str]) -> list[GaugeMetricFamily]:
        """Of every group, over the store or on Kafka, so that one without dead letters shows as 0."""
        async with self._system.store.storage.transaction() as transaction:
            rows = await transaction.scan(CHECKPOINTS, prefix=KAFKA_GROUP)
        groups = await DeadLetterQueue(self._system.store).groups()
        names = known | {key.removeprefix(KAFKA_GROUP) for key, _ in rows} | groups.keys()
        now = datetime.now(UTC)
        letters: Reading = {(name,): float(groups.get(name, {}).get("letters", 0)) for name in names}
        since = {name: groups.get(name, {}).get("oldest") or now for name in names}
        ages: Reading = {(name,): (now - _moment(moment)).total_seconds() for name, moment in since.items()}
        return [
            family(
                "es_dlq_messages",
                "Dead letters of a consumer group, those that wait behind a failed one included.",
                letters,
                ("group",),
            ),
            family(
                "es_dlq_oldest_age_seconds",
                "How long a consumer group's first parked aggregate has been parked.",
                ages,
                ("group",),
            ),
        ]

    async def _on_kafka(self) -> list[GaugeMetricFamily]:
        config = self._system.settings.bus_config()
        reading: Reading = {}
        if config.kafka_bootstrap_servers is not None:
            from eventsourcing.transport.kafka_lag import kafka_lags

            try:
                found = await kafka_lags(config, self._system.store.storage)
            except UnavailableError as error:
                _log.warning("%s", error)
                return []
            reading = {(lag.group, lag.topic): float(lag.messages) for lag in found}
        text = "Messages of a topic that a consumer group on Kafka has not done."
        return [family("es_consumer_lag", text, reading, ("group", "topic"))]


def _moment(value: datetime | str) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)


_UP = "Whether the event store answers: 1, or 0."


def _lagging(found: list[Lag]) -> list[GaugeMetricFamily]:
    models = [lag for lag in found if lag.kind == "read-model"]
    groups = [lag for lag in found if lag.kind == "group"]
    relay = next((lag for lag in found if lag.kind == "relay"), None)
    return [
        family(
            "es_projection_lag_events",
            "Positions that a read model is behind the head.",
            {(lag.name,): lag.events for lag in models},
            ("projection",),
        ),
        family(
            "es_projection_lag_seconds",
            "Age of the oldest event that a read model has not folded.",
            {(lag.name,): lag.seconds for lag in models},
            ("projection",),
        ),
        family(
            "es_group_lag_events",
            "Positions that a consumer group over the store is behind the head.",
            {(lag.name,): lag.events for lag in groups},
            ("group",),
        ),
        family(
            "es_group_lag_seconds",
            "Age of the oldest event that a consumer group over the store has not done.",
            {(lag.name,): lag.seconds for lag in groups},
            ("group",),
        ),
        family(
            "es_outbox_pending",
            "Positions that the relay has not published; without Kafka nobody relays.",
            {(): relay.events} if relay else {},
        ),
        family(
            "es_outbox_oldest_age_seconds",
            "Age of the oldest event that is not published.",
            {(): relay.seconds} if relay else {},
        ),
    ]
