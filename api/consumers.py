"""`GET /consumers`: how far behind read models, consumer groups and the relay are, and how each gets on."""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import BaseModel

from api.access import Scope, needs
from api.dependencies import OpenStore, OpenSystem, json_response, reach
from api.requests import JsonRoute
from api.schemas import ReadParams, examples, problems
from eventsourcing import lag
from eventsourcing.bootstrap import System
from eventsourcing.canonical import encode
from eventsourcing.errors import UnavailableError

log = logging.getLogger("esm.api.consumers")

consumers = APIRouter(route_class=JsonRoute, tags=["operations"])


class ConsumerOut(BaseModel):
    """A follower of the store. `events` are the positions behind, `seconds` the age of the oldest event not
    handled, `in_hand` the aggregates under way below `position`, `parked` those behind a dead letter."""

    kind: lag.Kind
    name: str
    state: lag.State
    position: int
    events: int
    seconds: float
    in_hand: int
    parked: int
    circuit: str | None


class KafkaGroupOut(BaseModel):
    """A consumer group on Kafka; `messages` not yet committed, by topic. Without a broker nobody knows."""

    name: str
    state: Literal["caught-up", "behind", "unknown"]
    messages: int | None
    topics: dict[str, int]
    parked: int


class ConsumersOut(BaseModel):
    """Who follows the store, and who follows Kafka."""

    model_config = examples(
        {
            "consumers": [
                {
                    "kind": "group",
                    "name": "accounts",
                    "state": "behind",
                    "position": 8190,
                    "events": 12,
                    "seconds": 0.4,
                    "in_hand": 3,
                    "parked": 1,
                    "circuit": "closed",
                }
            ],
            "kafka_groups": [
                {
                    "name": "billing",
                    "state": "behind",
                    "messages": 7,
                    "topics": {"migration.user.migrated": 7},
                    "parked": 0,
                }
            ],
        }
    )

    consumers: list[ConsumerOut]
    kafka_groups: list[KafkaGroupOut]


@consumers.get(
    "/consumers",
    response_model=ConsumersOut,
    responses=problems(406, 422, 503),
    openapi_extra=needs(Scope.ADMIN),
)
async def list_consumers(
    system: OpenSystem, store: OpenStore, params: Annotated[ReadParams, Query()]
) -> Response:
    """Each read model, consumer group and relay with its lag; on Kafka each group by topic."""
    await reach(store, params.min_position)
    followers = await lag.consumers(store.storage)
    return json_response(encode({"consumers": followers, "kafka_groups": await _on_kafka(system)}))


async def _on_kafka(system: System) -> list[dict[str, Any]]:
    config, storage = system.settings.bus_config(), system.store.storage
    parked = await lag.kafka_groups(storage)
    if not parked:
        return []
    behind: dict[str, dict[str, int]] | None = None
    if config.kafka_bootstrap_servers is not None:
        from eventsourcing.transport.kafka_lag import kafka_lags  # loads Kafka's client

        try:
            found = await kafka_lags(config, storage)
        except UnavailableError as error:
            log.warning("%s", error)
        else:
            behind = defaultdict(dict)
            for one in found:
                behind[one.group][one.topic] = one.messages
    return [_group(name, count, behind) for name, count in parked.items()]


def _group(name: str, parked: int, behind: dict[str, dict[str, int]] | None) -> dict[str, Any]:
    topics = {} if behind is None else behind.get(name, {})
    messages = None if behind is None else sum(topics.values())
    state = "unknown" if messages is None else "behind" if messages else "caught-up"
    return {"name": name, "state": state, "messages": messages, "topics": topics, "parked": parked}
