"""What schemathesis must be told about the Event Service."""

from __future__ import annotations

from typing import Any

import orjson
import schemathesis


@schemathesis.serializer("application/x-ndjson")
def lines(_context: Any, value: Any) -> bytes:
    """Lines of JSON from whatever was generated."""
    if isinstance(value, bytes):
        return value
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else orjson.dumps(value)


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Wait for no position that nobody was given: that takes five seconds, and 503 is the answer."""
    if len(str((case.query or {}).get("min_position", ""))) > 1:
        case.query["min_position"] = 1
