"""What went wrong with an event, in a form that can be kept: classified, fingerprinted, redacted, bounded.

Three kinds of error: an outage (something that a handler needs is away: wait, never park), a permanent
one (trying again cannot help: park at once), and every other (try again, then park).
"""

from __future__ import annotations

import errno
import hashlib
import sysconfig
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from eventsourcing.errors import DuplicateEventError, EventSourcingError, InvalidEventError, PermanentError
from eventsourcing.events import BaseEvent
from eventsourcing.secrets import redact, secret_values

MESSAGE_BYTES = 1024
STACK_BYTES = 8 * 1024

_PERMANENT = (PermanentError, InvalidEventError, DuplicateEventError, ValidationError)
_AWAY = {
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
    errno.ENOTCONN,
    errno.EPIPE,
    errno.ESHUTDOWN,
    errno.ETIMEDOUT,
}
_AWAY_STATES = ("08", "53300", "57P01", "57P02", "57P03")
"""SQLSTATEs of a database that is away: connection exceptions, too many connections, shutdowns."""

_FOREIGN = tuple(
    str(Path(path))
    for name, path in sysconfig.get_paths().items()
    if name in ("stdlib", "purelib", "platlib")
)
_OURS = str(Path(__file__).parent)


def is_outage(error: BaseException) -> bool:
    """Whether the fault lies with something that is away, and not with the event.

    The causes behind the error count, for a client's own error stands on the socket's; one of our own
    errors on the way says it for good.
    """
    for one in _chain(error):
        if isinstance(one, EventSourcingError):
            return one.retryable
        if _away(one):
            return True
    return False


def is_permanent(error: BaseException) -> bool:
    """Whether trying again cannot help."""
    return isinstance(error, _PERMANENT)


@dataclass(frozen=True, slots=True)
class Failure:
    """One failure of a handler, ready to be kept. `fingerprint` is the same for failures of one cause:
    the same exception raised from the same function of the handler's own code."""

    error_class: str
    message: str
    stack: str
    fingerprint: str

    @classmethod
    def of(cls, error: BaseException, event: BaseEvent) -> Failure:
        """Describe an error on an event: no secret of it or of its payload is kept, the message is cut
        at 1 KiB, the stack to its last 8 KiB."""
        kind = type(error)
        name = (
            kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        )
        secrets = secret_values(event.data)
        lines = traceback.format_exception(error, limit=-50)
        return cls(
            error_class=name,
            message=_head(redact(str(error)[: 8 * MESSAGE_BYTES], secrets), MESSAGE_BYTES),
            stack=_tail(redact("".join(lines), secrets), STACK_BYTES),
            fingerprint=hashlib.sha256(f"{name}@{_place(error)}".encode()).hexdigest()[:12],
        )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its explicit causes; a cycle ends it."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__


def _away(error: BaseException) -> bool:
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno in _AWAY:
        return True
    state = getattr(error, "sqlstate", None)
    return isinstance(state, str) and state.startswith(_AWAY_STATES)


def _place(error: BaseException) -> str:
    """File and function of the innermost frame that is the handler's own; lines move with each release."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*_FOREIGN, _OURS, "<frozen"))]
    place = (own or list(frames))[-1:]
    return f"{Path(place[0].filename).name}:{place[0].name}" if place else ""


def _head(text: str, size: int) -> str:
    return text.encode("utf-8", "replace")[:size].decode("utf-8", "ignore")


def _tail(text: str, size: int) -> str:
    return text.encode("utf-8", "replace")[-size:].decode("utf-8", "ignore")
