"""The Replay Service as a process, with jobs in the process itself: `python -m` this module."""

from __future__ import annotations

from fastapi import FastAPI

from api.replay_service import create_app
from api.server import serve
from eventsourcing import Settings
from tests.api.conftest import InlineLauncher


def create(settings: Settings) -> FastAPI:
    """The service over the launcher of the tests."""
    assert settings.database_url is not None
    return create_app(settings, InlineLauncher(settings.database_url))


if __name__ == "__main__":
    serve("replay-service", create, lambda settings: settings.replay_service_port)
