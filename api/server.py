"""Run a service: the port first, then what it needs, then requests; on a signal, backwards.

Whatever keeps it from starting is one line on stderr and exit code 1, and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from api.protocol import BoundedProtocol
from eventsourcing import ConfigurationError, EventSourcingError, Settings
from eventsourcing.logs import configure
from eventsourcing.metrics import share
from eventsourcing.secrets import redact_url

GRACE_S = 2
"""How long requests may still run after a signal; streams end before."""


def serve(name: str, create_app: Callable[[Settings], FastAPI], port_of: Callable[[Settings], int]) -> None:
    """Serve until SIGINT or SIGTERM, then exit with 0; exit with 1 when it cannot start.

    `name` stands in every line of the log.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    try:
        settings = Settings.load()
        configure(settings.log_level, settings.log_format, service=name)
        port, context = port_of(settings), settings.server_context()
        with _listening(settings.bind_host, port) as listener, share(f"{port}"):
            _run(create_app(settings), listener, context, proxies=settings.trusted_proxies)
    except EventSourcingError as error:
        sys.exit(redact_url(" ".join(str(error).split())))


def _run(app: FastAPI, listener: socket.socket, context: ssl.SSLContext | None, *, proxies: str) -> None:
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",  # no route is a socket; a handshake would pass by the protocol's bounds
        proxy_headers=bool(proxies),  # uvicorn would believe every process of this machine
        forwarded_allow_ips=proxies.replace(",", " ").split(),
        lifespan="off",  # opened here, so that a failure to start is an exception and no traceback
        log_config=None,
        access_log=False,  # `tracking` writes of every request
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
        ssl_context_factory=None if context is None else lambda _config, _default: context,
    )

    async def main() -> None:
        async with app.router.lifespan_context(app):
            await uvicorn.Server(config).serve(sockets=[listener])

    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(main())


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}"
        ) from error


def _leave(_number: int, _frame: FrameType | None) -> None:
    """End the process in order. uvicorn takes signals over while it serves, and raises them again after."""
    raise SystemExit(0)
