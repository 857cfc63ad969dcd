"""Dagster's webserver behind the door of our services: `python -m api.dagster_door`, with its arguments.

By itself it runs what any page asks of `GET /graphql?query=mutation…`, and answers under any name. It never
asks who calls, whatever our settings say, so only programs and its own pages may call it.
"""

from __future__ import annotations

import sys
from typing import Any

from dagster_webserver.cli import main
from dagster_webserver.webserver import DagsterWebserver
from starlette.datastructures import State
from starlette.middleware import Middleware

from api.origins import OwnPages, OwnPagesOnly
from eventsourcing import EventSourcingError, Settings


def guard(webserver: type[DagsterWebserver[Any, Any]], settings: Settings) -> None:
    """Put the door before every webserver of this class."""
    layers = webserver.build_middleware
    state = State({"own_pages": OwnPages(settings, asks_who=False)})

    def build_middleware(made: DagsterWebserver[Any, Any]) -> list[Middleware]:
        return [Middleware(OwnPagesOnly, state=state), *layers(made)]

    setattr(webserver, "build_middleware", build_middleware)  # noqa: B010 - its command makes the class itself


if __name__ == "__main__":
    try:
        guard(DagsterWebserver, Settings.load())
    except EventSourcingError as error:
        sys.exit(" ".join(str(error).split()))
    main()  # type: ignore[no-untyped-call] # click's
