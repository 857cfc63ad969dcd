"""Secrets: refused where they would be stored for ever, masked in whatever people read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator

_SECRET_KEY = re.compile(
    r"passw(or)?d|passphrase|(^|[_-])pass$|^pwd$|secret|token|credential|api[_-]?key|access[_-]?key|private[_-]?key",
    re.IGNORECASE,
)
_ASSIGNED = re.compile(
    r"""(["']?(?:[\w.-]{0,64}(?:passw(?:or)?d|passphrase|secret|token|credential|api[_-]?key|access[_-]?key"""
    r"""|private[_-]?key)[\w.-]{0,64}|pwd)["']?\s{0,4}[:=]\s{0,4})("[^"]*"?|'[^']*'?|[^\s,;&)}\]]+)""",
    re.IGNORECASE,
)
"""A secret-shaped name with its value, as in `password=x`, `"api_key": "x"`."""
_BEARER = re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]+", re.IGNORECASE)
_PEM = re.compile(r"-----BEGIN [A-Z ]+-----.*?(-----END [A-Z ]+-----|\Z)", re.DOTALL)
_URL_WITH_PASSWORD = re.compile(r"://[^/\s:@]*:[^/\s@]+@")  # a scheme in front makes it quadratic


def refuse_secrets(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config as it is; raise ValueError naming the first key that looks like a secret."""
    _walk(config, "")
    return config


def redact_url(text: str) -> str:
    """Replace the password of every URL in a text by `***`."""
    return re.sub(r"(://[^/\s:@]*):[^/\s@]+@", r"\1:***@", text)


def redact(text: str, values: Iterable[str] = ()) -> str:
    """Replace what looks like a secret in a text by `***`, and these values wherever they stand."""
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "***")
    text = _PEM.sub("***", redact_url(text))
    return _BEARER.sub(r"\1 ***", _ASSIGNED.sub(r"\1***", text))


def secret_values(payload: Any) -> set[str]:
    """The texts that stand under secret-shaped keys, however deep."""
    found: set[str] = set()
    if isinstance(payload, dict):
        for key, inner in payload.items():
            if isinstance(key, str) and _SECRET_KEY.search(key) and isinstance(inner, str) and len(inner) > 3:
                found.add(inner)
            found |= secret_values(inner)
    elif isinstance(payload, list | tuple):
        for inner in payload:
            found |= secret_values(inner)
    return found


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
