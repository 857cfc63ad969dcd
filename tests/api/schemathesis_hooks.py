"""What schemathesis must be told about the services: names that are known there, and where to count.

Runs in its process. `answers.json` in the working directory holds the counts at the end.
"""

from __future__ import annotations

import atexit
import json
import sys
import time
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import schemathesis

EVERY = 500
"""After how many answers a line of progress is written."""

CONFIGURED = {"mapping": "panel", "source": "panel.db", "target": "successor"}
NAMES = {"name": "user-migrations"}
SUBJECT = {"aggregate_id": "known"}
GROUP = {"consumer_group": "audit"}
KNOWN: dict[str, dict[str, str]] = {
    "/migrations": CONFIGURED,
    "/dead-letters": GROUP,
    "/dead-letters/redrive": GROUP,
    "/dead-letters/discard": GROUP,
    "/read-models/{name}/rebuild": NAMES,
    "/read-models/{name}/switch": NAMES,
    "/read-models/{name}/differences": NAMES,
    "/replay": SUBJECT,
    "/snapshot": SUBJECT,
    "/validate-sequence": SUBJECT,
}
"""By path, what fields have to say for a call to find something; chance does not hit upon it."""

_answers: Counter[str] = Counter()
_turn = count()
_began = time.monotonic()


@schemathesis.serializer("application/x-ndjson")
def lines(_context: Any, value: Any) -> bytes:
    """Lines of JSON from whatever was generated; the standard library writes numbers of any size, and lone
    surrogates."""
    if isinstance(value, bytes):
        return value
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else json.dumps(value).encode()


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Name what is known in every other valid call, and wait for no position that nobody was given: that
    takes five seconds, and 503 is the answer."""
    position = str((case.query or {}).get("min_position", ""))
    if len(position) > 1 or (position.isdecimal() and int(position) > 1):
        case.query["min_position"] = 1
    is_valid = case.meta is not None and case.meta.generation.mode.is_positive
    if is_valid and next(_turn) % 2:
        for values in (case.body, case.path_parameters, case.query):
            if isinstance(values, dict):
                known = KNOWN.get(case.operation.path, {})
                values.update({field: value for field, value in known.items() if field in values})


@schemathesis.hook
def after_call(_context: Any, case: Any, response: Any) -> None:
    """Count the answer under its phase and status."""
    phase = case.meta.phase.name.value if case.meta is not None else "other"
    _answers[f"{phase} {response.status_code}"] += 1
    if _answers.total() % EVERY == 0:
        spent = time.monotonic() - _began
        sys.stderr.write(f"{_answers.total()} answers after {spent:.0f} s, now in {phase}\n")


@atexit.register
def _write() -> None:
    Path("answers.json").write_text(json.dumps(_answers), "utf-8")
