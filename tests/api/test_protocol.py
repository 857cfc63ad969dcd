"""A connection ends that neither goes on with its request nor takes its answer, whatever it does instead."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

import api.protocol
from api.protocol import BoundedProtocol

ANSWER = b"x" * (8 * 1024 * 1024)


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers without reading the body; at `/much` with more than any buffer on the way holds."""
    assert scope["type"] == "http"
    del receive
    body = ANSWER if scope["path"] == "/much" else b"x"
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def listening() -> AsyncIterator[int]:
    """A server of that application in this process; its port."""
    config = uvicorn.Config(application, http=BoundedProtocol, lifespan="off", log_config=None, ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        yield listener.getsockname()[1]
        server.should_exit = True
        await serving


async def drip(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send a byte now and then, for as long as the connection lets us."""
    with suppress(ConnectionError):
        for byte in data:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("sent", [b"", b"x" * 1000], ids=["a body that never comes", "one that drips"])
async def test_an_answered_request_holds_no_connection_with_its_body(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(api.protocol, "HEAD_S", 0.5)
    async with listening() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\ny")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        dripping = asyncio.create_task(drip(writer, sent))
        async with asyncio.timeout(20):
            with suppress(ConnectionError):
                await reader.read()
        dripping.cancel()
        writer.transport.abort()


async def test_a_body_that_is_sent_after_its_answer_leaves_the_connection_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(api.protocol, "HEAD_S", 1.0)
    async with listening() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            assert await reader.readexactly(1) == b"x"
            writer.write(b"late")
            await asyncio.sleep(0.1)
        async with asyncio.timeout(20):
            assert await reader.read() == b"", "and then it ends, for nothing follows"
        writer.close()


@pytest.mark.parametrize("takes", [False, True])
async def test_who_takes_nothing_of_an_answer_is_left(monkeypatch: pytest.MonkeyPatch, takes: bool) -> None:
    monkeypatch.setattr(api.protocol, "STALLED_S", 0.5)
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.setblocking(False)
    async with listening() as port:
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=made, limit=4096)
        writer.write(b"GET /much HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = 0
        with suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            if not takes:
                await asyncio.sleep(3)
            while piece := await reader.read(65536):
                received += len(piece)
                if received >= len(ANSWER):
                    break
        writer.transport.abort()
    assert (received == len(ANSWER)) == takes
