"""A network between client and server that fails on demand: slow, cut, deaf, or cut at the worst moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto
from pathlib import Path

from sqlalchemy.engine import make_url

_READY = b"Z\x00\x00\x00\x05"
"""PostgreSQL's ReadyForQuery, up to its status: the transaction before it is over."""


class Link(Enum):
    """What the network does with what it is given."""

    WHOLE = auto()
    SILENT = auto()
    """Half-open: nothing arrives any more in either direction, and nobody is told."""
    LOSES_QUESTION = auto()
    """The next thing the client says never reaches the server; the connection is cut."""
    LOSES_ANSWER = auto()
    """The server does what the client says next, and the connection is cut before its answer arrives."""
    REFUSES = auto()
    """New connections are closed at once."""


class Proxy:
    """Forwards a loopback port to a server's socket or to another port. Faults strike every connection
    until changed back; a lost question or answer strikes once."""

    def __init__(self, upstream: Path | int) -> None:
        self._upstream = upstream
        self._open: set[asyncio.StreamWriter] = set()
        self._link = Link.WHOLE
        self._heard = asyncio.Event()
        self._heard.set()
        self.delay_s = 0.0
        self.let_pass = 0
        """How many answers pass before one is lost."""
        self.struck = asyncio.Event()
        self.port = 0

    @property
    def link(self) -> Link:
        """The fault in force."""
        return self._link

    @link.setter
    def link(self, link: Link) -> None:
        self._link = link
        self._heard.clear() if link is Link.SILENT else self._heard.set()

    def through(self, url: str) -> str:
        """The same database, reached through here."""
        through = make_url(url).set(host="127.0.0.1", port=self.port, query={})
        return through.render_as_string(hide_password=False)

    def redirect(self, upstream: Path) -> None:
        """Lead new connections to another server, as a failover does."""
        self._upstream = upstream

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._open:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection."""
        if self.link is Link.REFUSES:
            writer.transport.abort()
            return
        try:
            server_reader, server_writer = await self._upstream_connection()
        except OSError:
            writer.transport.abort()
            return
        both = {writer, server_writer}
        self._open |= both
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._questions(reader, server_writer, both))
                group.create_task(self._answers(server_reader, writer, both))
        except* (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._abort(both)
            self._open -= both

    async def _upstream_connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._upstream, int):
            return await asyncio.open_connection("127.0.0.1", self._upstream)
        return await asyncio.open_unix_connection(self._upstream)

    async def _questions(
        self, client: asyncio.StreamReader, server: asyncio.StreamWriter, both: set[asyncio.StreamWriter]
    ) -> None:
        while said := await client.read(65536):
            await asyncio.sleep(self.delay_s)
            if self.link is Link.LOSES_QUESTION:
                self._strike(both)
                return
            await self._heard.wait()
            server.write(said)
            await server.drain()
        self._abort(both)

    async def _answers(
        self, server: asyncio.StreamReader, client: asyncio.StreamWriter, both: set[asyncio.StreamWriter]
    ) -> None:
        while said := await server.read(65536):
            await asyncio.sleep(self.delay_s)
            if self.link is Link.LOSES_ANSWER:
                if self.let_pass == 0 and _READY in said:
                    self._strike(both)
                    return
                if self.let_pass == 0:
                    continue
                self.let_pass -= _READY in said
            await self._heard.wait()
            client.write(said)
            await client.drain()
        self._abort(both)

    def _strike(self, both: set[asyncio.StreamWriter]) -> None:
        self.link = Link.WHOLE
        self.struck.set()
        self._abort(both)

    @staticmethod
    def _abort(both: set[asyncio.StreamWriter]) -> None:
        for writer in both:
            writer.transport.abort()


@asynccontextmanager
async def proxy_to(upstream: Path | int) -> AsyncIterator[Proxy]:
    """A proxy that runs until the end of the block."""
    proxy = Proxy(upstream)
    listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = listener.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listener.close()
        proxy.link = Link.WHOLE
        proxy.cut()
        with suppress(TimeoutError):
            await asyncio.wait_for(listener.wait_closed(), timeout=5)
