"""The contract of a transport: how events travel from the store to their handlers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from eventsourcing.events import BaseEvent
from eventsourcing.handlers import EventHandler


@dataclass(frozen=True, slots=True)
class Subscription:
    """A handler, the types it wants (none means all), and its consumer group.

    Without a group the subscription is private to the process and sees what comes from now on.
    `start` says where a group that is new begins.
    """

    handler: EventHandler
    event_types: frozenset[str]
    group: str | None
    start: Literal["beginning", "now"]

    @property
    def identity(self) -> str:
        """Under which name its dead letters stand."""
        return self.group or f"private/{self.handler.name}"

    def takes(self, event: BaseEvent) -> bool:
        """Whether the handler gets the event. What a backfill brings is history: nobody outside is told."""
        if event.metadata.get("backfilled") is True and not self.handler.replayable:
            return False
        return self.wants(event.event_type)

    def wants(self, event_type: str) -> bool:
        """Whether events of the type concern the handler."""
        wanted = not self.event_types or event_type in self.event_types
        return wanted and self.handler.can_handle(event_type)


@dataclass(frozen=True, slots=True)
class Refused:
    """An event that the transport will never take, and why."""

    event: BaseEvent
    reason: str


class Receipt(Protocol):
    """Events on their way."""

    async def wait(self) -> Sequence[Refused]:
        """Return once every event has arrived or is refused for good.

        Raises UnavailableError; then some may have arrived, and nothing published later will.
        """


class Arrived:
    """The receipt of what arrived at once."""

    async def wait(self) -> Sequence[Refused]:
        """See Receipt.wait."""
        return ()


class Transport(Protocol):
    """Carries events to subscriptions, each aggregate's in version order, each at least once."""

    relayed: ClassVar[bool]
    """Whether a relay must bring the store's events; otherwise the transport reads the store itself."""

    async def start(self) -> None:
        """Begin to deliver."""

    async def stop(self) -> None:
        """Finish what is in hand and stop delivering; what is left stays for the next start."""

    async def publish(self, events: Sequence[BaseEvent]) -> Receipt:
        """Send events after those of earlier calls. Raises UnavailableError; then some may have been sent."""

    async def subscribe(self, subscription: Subscription) -> None:
        """Add a subscription, before or after the start."""
