"""No spelling of a path and no method opens what its scope does not: against a process, byte by byte."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator

import pytest

from api.access import Scope
from api.cli.openapi import documents
from api.keys import create_key
from eventsourcing import EventStore
from eventsourcing.storage.postgres import PostgresStorage
from tests.api.callers import declared_scopes, operations
from tests.api.service_process import raw, running


def spellings(path: str) -> Iterator[str]:
    """Other ways to write a path, by which a door and a route might be of two minds."""
    yield path
    yield f"{path}/"
    yield f"/{path}"
    yield f"/.{path}"
    yield f"/x/..{path}"
    yield f"/livez/..{path}"
    yield f"/livez%2f..{path}"
    yield f"{path};x=1"
    yield f"{path}%20"
    yield f"{path}%00"
    yield f"{path}?/livez"
    yield path.upper()
    yield "".join(f"%{ord(letter):02x}" if letter.isalpha() else letter for letter in path)
    yield path[0] + path[1:].replace("/", "%2f")
    yield path[0] + path[1:].replace("/", "//")
    yield f"http://localhost{path}"


TOLD = frozenset({Scope.METRICS})
"""Scopes that open next to nothing."""

OVERRIDES = "X-HTTP-Method-Override: GET\r\nX-Original-URL: /livez\r\nX-Rewrite-URL: /livez\r\n"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["event-service", "replay-service"])
async def test_no_spelling_and_no_method_gets_by(new_database: Callable[[], str], name: str) -> None:
    url = new_database()
    async with EventStore(storage=PostgresStorage(url, pool_size=2)) as store:
        keys = {scope: (await create_key(store.storage, "odd", [scope], lasts=None))[1] for scope in TOLD}
    module = {"event-service": "api.event_service", "replay-service": "tests.api.inline_replay_service"}[name]
    opened = []
    with running(url, module=module, ESM_AUTHENTICATION="on") as service:

        async def status(method: str, path: str, key: str | None) -> int:
            said = f"Authorization: Bearer {key}\r\n" if key else ""
            head = (
                f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{said}{OVERRIDES}Connection: close\r\n\r\n"
            )
            return int((await raw(service.port, head.encode(), wait_s=10))[9:12] or 0)

        for method, template, operation in operations(documents()[f"{name}.json"]):
            allowed = declared_scopes(operation)
            path = re.sub(r"{\w+}", "x", template)
            if operation["security"]:
                stranger = [(spelled, method, None) for spelled in spellings(path)]
                others = [
                    (path, other, None) for other in ("HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "get")
                ]
                wrong = [(spelled, method, keys[of]) for of in TOLD - allowed for spelled in spellings(path)]
                tried = [*stranger, *others, *wrong]
                found = await asyncio.gather(*(status(how, spelled, key) for spelled, how, key in tried))
                opened += [(each, code) for each, code in zip(tried, found, strict=True) if code < 400]
    assert opened == []
