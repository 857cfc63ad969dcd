"""Plugins: modules of a team that register its events and handlers, imported in every process.

They are named by the setting `plugins` or by the entry-point group `event_sourced_migration`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.metadata import entry_points

from eventsourcing.config import Settings
from eventsourcing.errors import ConfigurationError, NotFoundError
from eventsourcing.handlers import EventHandler, MigrationEventHandler, by_name

ENTRY_POINT_GROUP = "event_sourced_migration"


@dataclass(frozen=True, slots=True)
class RegisteredHandler:
    """A handler and the consumer group that feeds it."""

    handler: EventHandler
    consumer_group: str


_handlers: dict[str, RegisteredHandler] = {}


def register_handler(handler: EventHandler, consumer_group: str | None = None) -> EventHandler:
    """Have workers feed a handler, in a consumer group named after it unless one is given.

    Registering the same name again replaces the handler.
    """
    _handlers[handler.name] = RegisteredHandler(handler, consumer_group or handler.name)
    return handler


def registered_handlers() -> list[RegisteredHandler]:
    """The handlers that plugins registered, by name."""
    return [_handlers[name] for name in sorted(_handlers)]


def replay_handlers(names: list[str] | None = None) -> list[EventHandler]:
    """The handlers for a replay: those named, or every replayable one.

    Raises NotFoundError for an unknown name.
    """
    known = by_name([MigrationEventHandler(), *(entry.handler for entry in registered_handlers())])
    if names is None:
        return [handler for handler in known.values() if handler.replayable]
    for name in names:
        if name not in known:
            raise NotFoundError("handler", name)
    return [known[name] for name in names]


def load_plugins(settings: Settings) -> None:
    """Import every plugin; importing one twice does nothing. Raises ConfigurationError naming it."""
    for name in filter(None, (part.strip() for part in settings.plugins.split(","))):
        _import(name)
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        _import(entry.value.partition(":")[0])


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except (ImportError, TypeError, ValueError) as error:  # the latter two: an event that cannot be declared
        raise ConfigurationError(f"plugin {module!r} cannot be imported: {error}") from error
