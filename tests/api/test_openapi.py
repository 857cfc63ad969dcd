"""The OpenAPI documents are a contract: a committed copy, examples that hold, a page that stands alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest
from jsonschema import Draft202012Validator

from api.cli.openapi import as_text, documents
from tests.api.callers import operations

PUBLISHED = Path(__file__).parents[2] / "docs" / "openapi"


@pytest.mark.parametrize("name", ["event-service.json", "replay-service.json"])
def test_the_published_document_is_the_one_of_the_code(name: str) -> None:
    published = (PUBLISHED / name).read_text("utf-8")
    assert published == as_text(documents()[name]), "an intended change? `esm openapi docs/openapi` writes it"


@pytest.mark.parametrize("name", ["event-service.json", "replay-service.json"])
def test_every_operation_has_a_name_a_description_and_its_scope(name: str) -> None:
    document = documents()[name]
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    for method, path, operation in operations(document):
        assert operation.get("description"), (method, path)
        assert "security" in operation, (method, path)
        if operation["security"]:
            assert {"401", "403", "429"} <= operation["responses"].keys(), (method, path)


@pytest.mark.parametrize("name", ["event-service.json", "replay-service.json"])
def test_every_example_fits_its_schema(name: str) -> None:
    document = documents()[name]
    shown = 0
    for schema in document["components"]["schemas"].values():
        for example in schema.get("examples", ()):
            Draft202012Validator(_inlined(schema, document)).validate(example)
            shown += 1
    assert shown > 2


def _inlined(value: Any, document: dict[str, Any]) -> Any:
    if isinstance(value, dict) and "$ref" in value:
        return _inlined(document["components"]["schemas"][value["$ref"].rpartition("/")[2]], document)
    if isinstance(value, dict):
        return {name: _inlined(inner, document) for name, inner in value.items() if name != "examples"}
    return [_inlined(inner, document) for inner in value] if isinstance(value, list) else value


@pytest.mark.asyncio(loop_scope="session")
async def test_the_reference_is_a_page_that_needs_no_other_host(events: httpx2.AsyncClient) -> None:
    page = await events.get("/docs")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "src=" not in page.text
    assert "http://" not in page.text
    assert "https://" not in page.text
    document = (await events.get("/openapi.json")).json()
    for _, path, operation in operations(document):
        assert f'id="{operation["operationId"]}"' in page.text, path
