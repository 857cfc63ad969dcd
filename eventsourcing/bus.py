"""EventBus: publish events, subscribe handlers.

With a store, publishing appends the event if its id is absent, and what the store holds is delivered:
append-then-publish delivers once. Without a store, memory and Kafka deliver as given. A named group is
delivered each event at least once, in version order per aggregate; a subscription without a group is
private to the process and begins now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import ClassVar, Literal, Self

from eventsourcing.config import EventBusConfig
from eventsourcing.errors import InvalidEventError
from eventsourcing.events import BaseEvent
from eventsourcing.handlers import EventHandler
from eventsourcing.relay import Relay
from eventsourcing.storage.memory import InMemoryStorage
from eventsourcing.store import EventStore
from eventsourcing.transport.base import Subscription, Transport
from eventsourcing.transport.memory import InMemoryTransport
from eventsourcing.transport.store import StoreTransport

HandlerFunction = Callable[[BaseEvent], Awaitable[None]]


class EventBus:
    """Carries events to handlers: over memory, over the store, or over Kafka."""

    def __init__(
        self,
        config: EventBusConfig | None = None,
        *,
        store: EventStore | None = None,
        use_memory: bool = False,
    ) -> None:
        self._config = config or EventBusConfig()
        self._store = store
        self._use_memory = use_memory
        self._transport: Transport | None = None
        self._relay: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to deliver; repeating it changes nothing. Raises ConfigurationError, UnavailableError."""
        transport = await self._opened()
        await transport.start()
        if transport.relayed and self._store is not None and self._relay is None:
            relay = Relay(self._store.storage, transport)
            self._relay = asyncio.create_task(relay.run(), name="relay")

    async def stop(self) -> None:
        """Stop delivering. What is not delivered stays in the store."""
        if self._relay is not None:
            self._relay.cancel()
            await asyncio.gather(self._relay, return_exceptions=True)
            self._relay = None
        if self._transport is not None:
            await self._transport.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def publish(self, event: BaseEvent) -> None:
        """Publish one event. See publish_batch."""
        await self.publish_batch([event])

    async def publish_batch(self, events: Sequence[BaseEvent]) -> None:
        """Publish events in their order. With a store they are appended, all or none, and then delivered.

        Raises what an append raises; then nothing is published.
        """
        transport = await self._opened()
        if self._store is not None:
            await self._store.append_events(events)
        else:
            await self._send(transport, events)

    @staticmethod
    async def _send(transport: Transport, events: Sequence[BaseEvent]) -> None:
        receipt = await transport.publish(events)
        for refused in await receipt.wait():
            raise InvalidEventError(refused.reason, index=list(events).index(refused.event))

    async def subscribe(
        self,
        event_types: Iterable[str],
        handler: EventHandler | HandlerFunction,
        consumer_group: str | None = None,
        *,
        start: Literal["beginning", "now"] | None = None,
    ) -> None:
        """Have a handler called for events of these types; no types means all that it can handle.

        A new consumer group begins at the first event, or now for a handler that is not replayable,
        unless `start` says otherwise.
        """
        target = handler if isinstance(handler, EventHandler) else _FunctionHandler(handler)
        begin = start or ("beginning" if target.replayable else "now")
        types = frozenset(map(str, [event_types] if isinstance(event_types, str) else event_types))
        transport = await self._opened()
        await transport.subscribe(Subscription(target, types, consumer_group, begin))

    async def _opened(self) -> Transport:
        if self._store is not None:
            await self._store.initialize()
        if self._transport is None:
            self._transport = self._choose()
        return self._transport

    def _choose(self) -> Transport:
        if self._config.kafka_bootstrap_servers is not None and not self._use_memory:
            # Imported when it is used: a client that nobody needs is not loaded into every process.
            from eventsourcing.transport.kafka import KafkaTransport

            return KafkaTransport(self._config, self._store.storage if self._store else None)
        if self._store is None:
            return InMemoryTransport(self._config, InMemoryStorage())
        if self._use_memory:
            return InMemoryTransport(self._config, self._store.storage)
        return StoreTransport(self._config, self._store.storage)


class _FunctionHandler(EventHandler):
    """A plain function as a handler."""

    replayable: ClassVar[bool] = True

    def __init__(self, function: HandlerFunction) -> None:
        self._function = function

    @property
    def name(self) -> str:
        return getattr(self._function, "__qualname__", repr(self._function))

    def can_handle(self, event_type: str) -> bool:  # noqa: ARG002 - the subscription names the types
        return True

    async def handle(self, event: BaseEvent) -> None:
        await self._function(event)
