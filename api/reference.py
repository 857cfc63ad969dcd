"""`/docs`: the reference of a service as one page, made of its OpenAPI document. It loads nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from api.access import MEANINGS

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2733}
h2{margin:2.2rem 0 .3rem;font:600 1.05rem ui-monospace,monospace}h2 b{color:#0a6;margin-right:.6rem}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.2rem .8rem .2rem 0}
td{vertical-align:top}th{font-weight:600;border-bottom:1px solid #ccd}a{color:#06c}
pre{background:#f4f6f8;padding:.7rem;overflow:auto;font-size:13px}.note{color:#567}
code{font-family:ui-monospace,monospace;font-size:.92em}
@media (prefers-color-scheme:dark){body{background:#12181f;color:#dde5ec}pre{background:#1c2530}}
"""

_POLICY = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}


def add_reference(app: FastAPI) -> None:
    """Serve the page of an application at `/docs`."""

    async def docs() -> HTMLResponse:
        return HTMLResponse(reference_page(app.openapi()), headers=_POLICY)

    app.add_api_route("/docs", docs, include_in_schema=False)


def reference_page(document: Mapping[str, Any]) -> str:
    """The page of an OpenAPI document."""
    title = escape(document["info"]["title"])
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
        f"<h1>{title}</h1><p>Every operation, what it needs and what it answers. Programs read "
        "<a href=openapi.json>openapi.json</a>. Errors are <code>application/problem+json</code>; their "
        f"<code>type</code> is a path that says what to do.</p>{''.join(_body(document))}</html>"
    )


def _body(document: Mapping[str, Any]) -> Iterator[str]:
    scopes = [(scope, meaning) for scope, meaning in MEANINGS.items()]
    yield _table("Scopes", scopes)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield from _operation(document, method.upper(), path, operation)


def _operation(
    document: Mapping[str, Any], method: str, path: str, operation: Mapping[str, Any]
) -> Iterator[str]:
    yield f'<h2 id="{escape(operation["operationId"])}"><b>{method}</b>{escape(path)}</h2>'
    needed = sorted({scope for way in operation["security"] for scopes in way.values() for scope in scopes})
    needs = f"Needs <code>{escape(', '.join(needed))}</code>." if needed else "Open to everybody."
    yield f"<p>{escape(operation.get('description', ''))} <span class=note>{needs}</span></p>"
    parameters = [
        (f"{parameter['name']} ({parameter['in']})", _said_of(parameter))
        for parameter in operation.get("parameters", ())
    ]
    if parameters:
        yield _table("Parameter", parameters)
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<pre>{escape(media)}\n{escape(_example(document, content))}</pre>"
    answers = [(status, answer.get("description", "")) for status, answer in operation["responses"].items()]
    yield _table("Answer", answers)


def _said_of(parameter: Mapping[str, Any]) -> str:
    schema = parameter.get("schema", {})
    kinds = [kind.get("format") or kind.get("type", "") for kind in schema.get("anyOf", [schema])]
    said = parameter.get("description") or schema.get("description") or ""
    return f"{' or '.join(kind for kind in kinds if kind != 'null')}. {said}".strip()


def _example(document: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    if "example" in content:
        return str(content["example"])
    schema = _resolved(document, content.get("schema", {}))
    inner = _resolved(document, schema.get("items", {}))
    examples = schema.get("examples") or [inner.get("examples", [])[:1]]
    return json.dumps(examples[0], indent=2)


def _resolved(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    for option in schema.get("anyOf", ()):
        if "$ref" in option:
            schema = option
    name = schema.get("$ref", "").rpartition("/")[2]
    found: Mapping[str, Any] = document["components"]["schemas"][name] if name else schema
    return found


def _table(title: str, rows: list[tuple[Any, Any]]) -> str:
    cells = "".join(f"<tr><td><code>{escape(str(a))}</code><td>{escape(str(b))}" for a, b in rows)
    return f"<table><tr><th>{title}<th>{cells}</table>"
