"""The Replay Service against its own OpenAPI document: schemathesis, its stateful phase among the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from eventsourcing.testing import a_migration
from tests.api.conftest import append
from tests.api.document import forms, hold_against_document
from tests.api.service_process import running


@forms(short=180)
def test_no_call_is_answered_otherwise_than_documented(
    new_database: Callable[[], str], tmp_path: Path, examples: int
) -> None:
    """No 5xx, and no status, media type or body that the document does not have."""
    database = new_database()
    asyncio.run(append(database, a_migration("known")))
    with running(database, module="tests.api.inline_replay_service") as service:
        hold_against_document(service, tmp_path, examples=examples)
