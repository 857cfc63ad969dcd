"""A service as a process of its own, for tests that send it what no client library would."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException

import httpx2
import psutil

from tests.api.conftest import ROOT, free_port


@dataclass
class ServiceProcess:
    """One service on a port of its own; it may be killed and started again."""

    database_url: str
    port: int = field(default_factory=free_port)
    settings: dict[str, str] = field(default_factory=dict)
    module: str = "api.event_service"
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> float:
        """Start it and return once it is ready; how long that took, in seconds."""
        began = time.monotonic()
        environment = {
            **os.environ,
            "DATABASE_URL": self.database_url,
            "ESM_EVENT_SERVICE_PORT": str(self.port),
            "ESM_REPLAY_SERVICE_PORT": str(self.port),
            "ESM_RATE_LIMIT": "0",
            "LOG_LEVEL": "ERROR",
            **self.settings,
        }
        self._process = subprocess.Popen([sys.executable, "-m", self.module], env=environment, cwd=ROOT)
        while time.monotonic() - began < 60:
            assert self._process.poll() is None, "the service ended"
            with (
                suppress(OSError, HTTPException),
                closing(HTTPConnection("127.0.0.1", self.port, 2)) as probe,
            ):
                probe.request("GET", "/readyz")  # a client that reads certificates first slows what it times
                if probe.getresponse().status == 200:
                    return time.monotonic() - began
            time.sleep(0.05)
        raise AssertionError("the service was not ready within a minute")

    def kill(self) -> None:
        """End it as a crash does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)

    def memory_mb(self) -> float:
        """What it holds in memory now."""
        assert self._process is not None
        return psutil.Process(self._process.pid).memory_info().rss / 2**20

    def is_up(self) -> bool:
        """Whether it runs and answers."""
        return httpx2.get(f"{self.url}/readyz", timeout=10).status_code == 200

    def stop(self) -> None:
        """End it in order."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(15)
            self._process.kill()
            self._process.wait(10)


@contextmanager
def running(
    database_url: str, *, module: str = "api.event_service", **settings: str
) -> Iterator[ServiceProcess]:
    """A service that is ready, until the end."""
    service = ServiceProcess(database_url, settings=settings, module=module)
    try:
        service.start()
        yield service
    finally:
        service.stop()


async def raw(port: int, sent: bytes, *, wait_s: float = 5.0) -> bytes:
    """Send bytes as they are, and return what came back until it was whole, the end, or time was up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = bytearray()
    try:
        with suppress(ConnectionError, TimeoutError):
            writer.write(sent)
            async with asyncio.timeout(wait_s):
                while not _is_whole(received) and (piece := await reader.read(65536)):
                    received += piece
    finally:
        writer.transport.abort()
    return bytes(received)


def _is_whole(received: bytearray) -> bool:
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return len(body) >= int(length) if length else body.endswith(b"0\r\n\r\n")
