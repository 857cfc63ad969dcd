"""Refuse secrets where they would be stored for ever: in the `…_config` of an event."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator

_SECRET_KEY = re.compile(
    r"pass(word|wd|phrase)?$|^pwd$|secret|token|credential|api[_-]?key|access[_-]?key|private[_-]?key",
    re.IGNORECASE,
)
_URL_WITH_PASSWORD = re.compile(r"://[^/\s:@]*:[^/\s@]+@")  # a scheme in front makes it quadratic


def refuse_secrets(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config as it is; raise ValueError naming the first key that looks like a secret."""
    _walk(config, "")
    return config


def redact_url(text: str) -> str:
    """Replace the password of every URL in a text by `***`."""
    return re.sub(r"(://[^/\s:@]*):[^/\s@]+@", r"\1:***@", text)


def _walk(value: Any, path: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(key, str) and _SECRET_KEY.search(key):
                raise ValueError(f"{path}{key} looks like a secret, and events are kept for ever")
            _walk(inner, f"{path}{key}.")
    elif isinstance(value, list | tuple):
        for inner in value:
            _walk(inner, path)
    elif isinstance(value, str) and _URL_WITH_PASSWORD.search(value):
        raise ValueError(f"{path.rstrip('.')} holds a URL with a password, and events are kept for ever")


ConnectionConfig = Annotated[dict[str, Any], AfterValidator(refuse_secrets)]
"""How a connection is described in an event: no password, token or key."""
