"""Servers that may be broken: one of each version for the session, restarted by the tests that stop it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from tests.faults.proxy import Proxy, proxy_to
from tests.servers import VERSIONS, Server, new_database, server_of


@pytest.fixture(scope="session")
def started() -> Iterator[Callable[[str], Server]]:
    """The server of a version; it starts when somebody first asks for it. It syncs, as in production."""
    made: dict[str, Server] = {}
    with ExitStack() as stack:

        def of_version(version: str) -> Server:
            if version not in made:
                made[version] = stack.enter_context(server_of(version))
                made[version].start()
            return made[version]

        yield of_version


@pytest.fixture(params=VERSIONS)
def server(request: pytest.FixtureRequest, started: Callable[[str], Server]) -> Server:
    """A running server of every version in turn."""
    return started(request.param)


@pytest.fixture
def url(server: Server) -> str:
    """The URL of a new database."""
    return new_database(server)


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[Proxy]:
    """A network that leads to the server."""
    async with proxy_to(server.socket) as made:
        yield made


@pytest.fixture
async def administrator(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A plain connection of the superuser to the database, beside the network."""
    connection = await asyncpg.connect(make_url(url).set(drivername="postgresql").render_as_string())
    yield connection
    connection.terminate()
