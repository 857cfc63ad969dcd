"""The bound on a request's head ends with the head: an answer may take as long as it takes."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx2
import pytest
import uvicorn

from api.protocol import BoundedProtocol


async def slowly(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(0.8)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def test_an_answer_that_outlasts_the_bound_of_the_head_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.protocol.HEAD_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        config = uvicorn.Config(slowly, http=BoundedProtocol, lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            for _ in range(2):  # the second on the connection of the first
                assert (await client.get("/")).text == "ok"
            assert (await client.post("/", content=b"body")).text == "ok"
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nHost: ")  # a head that never ends
            assert await asyncio.wait_for(reader.read(), timeout=5) == b""
            writer.close()
        server.should_exit = True
        await serving
