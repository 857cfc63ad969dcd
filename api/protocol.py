"""HTTP/1.1 as uvicorn speaks it through httptools, with bounds before there is a request.

A request's line and headers may take 64 KiB and ten seconds; what httptools refuses, and what goes beyond,
is answered with a problem, and the connection is closed.
"""

from __future__ import annotations

import asyncio

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
HEAD_S = 10.0
"""How long the headers may take, from the connection's beginning or the request's first byte."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    _head_bytes = 0
    _in_head = True
    _impatience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._be_patient()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, "Request Header Fields Too Large", f"Headers may hold {MAX_HEAD_BYTES} bytes.")
        elif self._impatience is None:
            self._wait_for_headers()

    def on_message_begin(self) -> None:
        """The first byte of a request's head. Not before: a request that is read may be answered for long."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The request begins."""
        self._in_head, self._head_bytes = False, 0
        self._be_patient()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        self._refuse(400, "Bad Request", msg)

    def _refuse(self, status: int, title: str, detail: str) -> None:
        body = orjson.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail})
        head = (
            f"HTTP/1.1 {status} {title}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _wait_for_headers(self) -> None:
        self._impatience = self.loop.call_later(HEAD_S, self._give_up)

    def _be_patient(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
