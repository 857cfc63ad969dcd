"""HTTP/1.1 as uvicorn speaks it through httptools, with bounds where there is no request yet or no more.

A request's line and headers may take 64 KiB and ten seconds; what httptools refuses, and what goes beyond,
is answered with a problem, and the connection is closed. So is one whose client sends the rest of a body for
more than ten seconds that nobody waits for, or takes next to nothing of an answer for a minute.
"""

from __future__ import annotations

import asyncio

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
HEAD_S = 10.0
"""How long the headers may take, from the connection's beginning or the request's first byte; and what is
left of a body when it has been answered."""

STALLED_S = 60.0
TAKEN_BYTES = 16 * 1024
"""How much of an answer a client must take within that time, once it has been told to hold on to more."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    _head_bytes = 0
    _in_head = True
    _in_body = False
    _unread = 0
    _stall: asyncio.TimerHandle | None = None
    _impatience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._be_patient()
        self._forget_stall()
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
        self._in_head, self._head_bytes, self._in_body = False, 0, True
        self._be_patient()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request has been sent."""
        self._in_body = False
        super().on_message_complete()
        if self.cycle.response_complete:  # uvicorn no longer waits for the next one
            self._be_patient()
            self._wait_for_headers()

    def on_response_complete(self) -> None:
        """The request was answered, wherever its body has come to."""
        super().on_response_complete()
        if self._in_body and self.cycle.response_complete and self._impatience is None:
            self._wait_for_headers()

    def pause_writing(self) -> None:
        """The client has to take some of its answer first."""
        super().pause_writing()
        self._forget_stall()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        """It has."""
        self._forget_stall()
        super().resume_writing()

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

    def _wait_for_reader(self) -> None:
        self._unread = self.transport.get_write_buffer_size()
        self._stall = self.loop.call_later(STALLED_S, self._look_at_reader)

    def _look_at_reader(self) -> None:
        if self.transport.get_write_buffer_size() > self._unread - TAKEN_BYTES:
            self.transport.abort()  # closing would wait for what nobody takes
        else:
            self._wait_for_reader()

    def _forget_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _be_patient(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
